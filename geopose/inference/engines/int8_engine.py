"""A network in 8 bits, out of its file, run by OpenVINO on a CPU.

What is in 8 bits is so whatever a config says; the rest computes in float32, or in bfloat16 where
the precision is that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geopose.checkpoints.formats.int8_file import read_int8_graph
from geopose.errors import InputError, one_line
from geopose.inference.engines.openvino_engine import (
    GraphNetwork,
    HeadsGraph,
    graph_from_bytes,
    has_openvino,
)
from geopose.inference.engines.precision import FP32
from geopose.models.exportable import INPUTS


class Int8Network(GraphNetwork):
    """A quantised network.

    Args:
        path: a file that `read_int8_facts` accepts.
        quantized: what that says of it.

    Raises:
        InputError: OpenVINO is not installed, or cannot read the graph.
    """

    def __init__(self, path: Path, quantized: Mapping[str, Any]) -> None:
        if not has_openvino():
            raise InputError(
                f"{path} needs the package openvino, which is not installed; pip install "
                "'geopose[openvino]', or use the file that it was made of"
            )
        try:
            graph = graph_from_bytes(*read_int8_graph(path))
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO cannot read it ({one_line(error, 200)})") from error
        heads = tuple(quantized["heads"])
        _check_ports(graph, len(heads), path)
        strides = quantized["stride"], quantized["head_stride"]
        super().__init__(HeadsGraph(graph, heads, *strides), FP32)

    def computes_in(self, precision: str) -> None:
        """Chooses the numbers of what is not in 8 bits: fp32 or bf16."""
        self._precision = precision


def _check_ports(graph: Any, count: int, path: Path) -> None:
    """Raises InputError unless a graph takes an image and a gsd, and gives what its file says."""
    inputs = [port.get_any_name() if port.get_names() else "" for port in graph.inputs]
    if inputs != list(INPUTS) or len(graph.outputs) != count:
        raise InputError(
            f"{path}: its graph takes {inputs} and gives {len(graph.outputs)} maps, must take "
            f"{list(INPUTS)} and give {count}"
        )
