"""A network's graph in floating point in, the same with most layers in 8 bits out; by NNCF."""

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from geopose.errors import GeoposeError, RunError, one_line
from geopose.inference.engines.openvino_engine import HeadsGraph, openvino_core, openvino_package
from geopose.quantization.calibration import Calibration
from geopose.quantization.layers import digits, layers_of, not_in_8_bits, readable
from geopose.system.optional import needs_extra

logger = logging.getLogger(__name__)

_MOST_NAMED = 5  # layers in one line


def quantize(heads: HeadsGraph, calibration: Calibration, source: str) -> HeadsGraph:
    """The graph with weights and maps in 8 bits, but for the layers that decide about digits.

    Args:
        heads: in float32; it stays as it is.
        calibration: what the ranges of maps are taken from.
        source: of the network, for messages.

    Raises:
        InputError: NNCF is not installed, or an image cannot be read.
        RunError: NNCF fails, or finds nothing that it can quantise.
    """
    with _nncf() as nncf:
        kept = digits(heads)
        try:
            graph = nncf.quantize(
                heads.graph.clone(),
                nncf.Dataset(range(len(calibration.records)), calibration.inputs),
                subset_size=len(calibration.records),
                ignored_scope=nncf.IgnoredScope(names=kept),
                # Zero in the middle of every range. Maps with a zero point elsewhere keep OpenVINO
                # from its fastest convolutions, and from transposed ones in 8 bits at all.
                preset=nncf.QuantizationPreset.PERFORMANCE,
                # The defaults cost up to six times the error in the flow: half of the range of the
                # first weights, for processors without VNNI, and new biases, which are off. Ranges
                # of maps hold every value that was seen: what a mean over images would cut off are
                # the tallest buildings.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix.DISABLE,
                    disable_bias_correction=True,
                    activations_range_estimator_params=_ranges().MINMAX,
                ),
            )
        except GeoposeError:
            raise
        except Exception as error:  # its errors have no common base
            raise RunError(f"{source}: NNCF cannot quantise it ({one_line(error, 200)})") from error
    _say_float(graph, kept, source)
    return replace(heads, graph=graph)


def _ranges() -> Any:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return RangeEstimatorParametersSet


def _say_float(graph: Any, kept: list[str], source: str) -> None:
    """Names the layers that NNCF has left in floating point, beside those that it was to leave."""
    found, count = not_in_8_bits(graph), len(layers_of(graph))
    left = [readable(name) for name in found if name not in kept]
    if len(found) == count:
        raise RunError(f"{source}: NNCF quantises none of its {count} layers; use it as it is")
    logger.info("%d of %d layers in 8 bits", count - len(found), count)
    if left:
        more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
        logger.warning(
            "%s: NNCF cannot quantise %d layers, which stay in fp32 or bf16: %s%s",
            source, len(left), ", ".join(left[:_MOST_NAMED]), more,
        )  # fmt: skip


def check_nncf() -> None:
    """Raises InputError if NNCF is not installed; takes no time."""
    with needs_extra("int8", "quantize"):
        if importlib.util.find_spec("nncf") is None:
            raise ModuleNotFoundError(name="nncf")


@contextlib.contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF, whose messages go to standard error, in our OpenVINO.

    Each further state of OpenVINO would leave signals of the process without a place to be handled
    at, see `openvino_core`.
    """
    with needs_extra("int8", "quantize"):
        package, core = openvino_package(), openvino_core()
        import nncf
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function changes others' handlers
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}
    core.set_property("CPU", settings)
    own = package.Core
    package.Core = lambda: core
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield nncf
    finally:
        package.Core = own
