"""A network run by OpenVINO on a CPU: the loaded network in, the same function out.

Results come out in float32, also where the network computes in bfloat16. OpenVINO is an optional
package.
"""

import hashlib
import importlib.util
import logging
import shutil
import sys
import tempfile
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from geopose import models
from geopose.checkpoints.remote.fetch import checkpoint_cache
from geopose.errors import RunError, one_line
from geopose.inference.engines.engine import Engine
from geopose.inference.engines.precision import BF16, FP32
from geopose.models.exportable import INPUTS, ExportableHeads
from geopose.models.geopose_unet import GeoposeUNetModel, HeadOutputs, finish

logger = logging.getLogger(__name__)

_PACKAGE = "openvino"
_FILE = "network.xml"
_SIZES_KEPT = 3  # compiled networks, for views that are turned or zoomed
# From here on compiling (1 s of a core for b7_unet) is little beside computing: nothing need wait.
_LARGE_PIXELS = 1 << 21
_PATIENCE_MS = 200
_LARGEST_DIFFERENCE = 1e-3  # relative to the largest value of an output, float32


def has_openvino() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


def openvino_package() -> Any:
    # At import OpenVINO reports its use to its makers, if this package of theirs can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # takes a while, and is rarely needed

    return openvino


@cache
def openvino_core() -> Any:
    """OpenVINO's state. On processors with AMX each one changes where signals of the process are
    handled, and leaves that place invalid when it goes; so there is one, and it stays.
    """
    return openvino_package().Core()


@dataclass(frozen=True)
class HeadsGraph:
    """OpenVINO's graph of a network up to its heads.

    Attributes:
        graph: image N x 3 x H x W and gsd N x 1, of any size -> what the heads give.
        given: which of `HeadOutputs` that are, in their order.
        stride: of the network. head_stride: of its height head.
    """

    graph: Any
    given: tuple[str, ...]
    stride: int
    head_stride: int


def heads_graph(model: GeoposeUNetModel) -> HeadsGraph:
    """The graph of a network, from the cache if it was made before.

    Args:
        model: in eval mode, on the CPU.

    Raises:
        Exception: the network has a part that OpenVINO does not know, or does otherwise.
    """
    heads = _heads(model, *_example())._asdict().items()
    given = tuple(name for name, value in heads if value is not None)
    return HeadsGraph(_converted(model), given, model.stride, int(model.agl_head.stride))  # type: ignore[arg-type]


class GraphNetwork(Engine):
    """A graph that is compiled anew for each size of image.

    With free sizes OpenVINO takes nearly twice the memory and is slower (b7_unet at 2048 px in
    float32: 13.5 GB, 52 s). Only one compiled network has memory for its maps at a time: where
    another one begins, or another size, it gives that back first. For large images it goes
    altogether, and is compiled again at its turn: nine of b7_unet would hold 3 GB of weights.

    Args:
        heads: the graph.
        precision: fp32 or bf16.
    """

    _working: tuple[ReferenceType["GraphNetwork"], torch.Size] | None = None

    def __init__(self, heads: HeadsGraph, precision: str) -> None:
        super().__init__()
        self._heads, self._precision = heads, precision
        self._requests: OrderedDict[torch.Size, Any] = OrderedDict()

    def forward(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        """The network's outputs."""
        try:
            self._take_turn(image.shape)
            found = _infer(self._for_size(image.shape), image, gsd_m)
        except (RuntimeError, MemoryError) as error:
            size = " x ".join(map(str, image.shape))
            raise RunError(
                f"OpenVINO failed on an input of {size} ({one_line(error, 200)}); use "
                "inference.backend=torch"
            ) from error
        given = dict(zip(self._heads.given, found, strict=True))
        heads = HeadOutputs(*(given.get(name) for name in HeadOutputs._fields))  # type: ignore[arg-type]
        return finish(heads, image.shape[-2:], self._heads.stride, self._heads.head_stride)

    def _take_turn(self, shape: torch.Size) -> None:
        """Has whoever worked last, or this network at another size, give back its memory."""
        if GraphNetwork._working is not None:
            reference, size = GraphNetwork._working
            last = reference()
            if last is not None and (last is not self or size != shape):
                last._give_back(size)
        GraphNetwork._working = ref(self), shape

    def _give_back(self, shape: torch.Size) -> None:
        """The memory of maps of a shape; with large ones that of the weights, too."""
        if shape[0] * shape[2] * shape[3] >= _LARGE_PIXELS:
            self._requests.pop(shape, None)
        elif shape in self._requests:
            self._requests[shape].get_compiled_model().release_memory()

    def _for_size(self, shape: torch.Size) -> Any:
        """What computes images of this shape."""
        if shape in self._requests:
            self._requests.move_to_end(shape)
            return self._requests[shape]
        while len(self._requests) >= _SIZES_KEPT:
            self._requests.popitem(last=False)
        self._requests[shape] = _compiled(self._heads.graph, shape, self._precision)
        return self._requests[shape]


class OpenVinoNetwork(GraphNetwork):
    """A loaded network, converted.

    Args:
        model: in eval mode, on the CPU.
        precision: fp32 or bf16.

    Raises:
        Exception: see `heads_graph`.
    """

    def __init__(self, model: GeoposeUNetModel, precision: str) -> None:
        super().__init__(heads_graph(model), precision)


def _compiled(graph: Any, shape: torch.Size, precision: str) -> Any:
    """A request for images of a shape, N x 3 x H x W."""
    graph = graph.clone()
    graph.reshape({INPUTS[0]: list(shape), INPUTS[1]: [shape[0], 1]})
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == BF16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # processes side by side would all take the first cores
    }
    return openvino_core().compile_model(graph, "CPU", settings).create_infer_request()


def _infer(request: Any, image: Tensor, gsd_m: Tensor) -> list[Tensor]:
    request.start_async([image.contiguous().numpy(), gsd_m.contiguous().numpy()])
    try:
        while not request.wait_for(_PATIENCE_MS):
            pass  # in between, Python sees whether it was told to stop
    except BaseException:
        request.cancel()
        raise
    outputs = request.model_outputs
    return [torch.from_numpy(request.get_tensor(port).data.copy()) for port in outputs]


def _converted(model: GeoposeUNetModel) -> Any:
    """OpenVINO's graph of a network, from the cache if it was made before."""
    folder = checkpoint_cache() / _PACKAGE / _digest(model)
    graph = _kept(folder)
    if graph is not None:
        return graph
    logger.info("converting a network for OpenVINO, once; later runs find it in %s", folder.parent)
    graph = _convert(model)
    _check(graph, model)
    try:
        _keep(graph, folder)
    except (OSError, RuntimeError) as error:
        if not (folder / _FILE).is_file():  # else another process was faster
            logger.warning("%s: cannot be kept for later runs (%s)", folder, one_line(error, 200))
    return _kept(folder) or graph  # weights in a mapped file: the system can take their memory back


def _kept(folder: Path) -> Any:
    """The graph in a folder of the cache, or None."""
    try:
        if (folder / _FILE).is_file():
            return openvino_core().read_model(folder / _FILE)
    except (OSError, RuntimeError) as error:
        logger.warning("%s: cannot be used, converting again (%s)", folder, one_line(error, 200))
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _keep(graph: Any, folder: Path) -> None:
    """Writes a graph to the cache; whole, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as name:
        part = Path(name) / "part"
        part.mkdir()
        openvino_package().save_model(graph, part / _FILE, compress_to_fp16=False)
        openvino_core().read_model(part / _FILE)  # notices a file that is too short
        part.rename(folder)


def _check(graph: Any, model: GeoposeUNetModel) -> None:
    """Raises RunError unless the graph answers as the network, at another size than traced."""
    image = torch.randn(2, 3, 131, 70, generator=torch.Generator().manual_seed(0))
    gsd_m = torch.tensor([[0.3], [0.8]])
    found = _infer(_compiled(graph, image.shape, FP32), image, gsd_m)
    expected = [value for value in _heads(model, image, gsd_m) if value is not None]
    for ours, theirs in zip(expected, found, strict=True):
        difference = (ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-6)
        if not difference <= _LARGEST_DIFFERENCE:
            raise RunError(f"answers differ by {float(difference):.1e}")


def _example() -> tuple[Tensor, Tensor]:
    """An input; any size would do."""
    return torch.zeros(1, 3, 64, 96), torch.full((1, 1), 0.5)


def _heads(model: GeoposeUNetModel, image: Tensor, gsd_m: Tensor) -> HeadOutputs:
    with torch.no_grad():
        return model.heads(image, gsd_m)


def _convert(model: GeoposeUNetModel) -> Any:
    """The graph up to the heads; what follows would be rounded to bfloat16 with the rest."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's tracer, about itself
        traced = torch.jit.trace(ExportableHeads(model).eval(), _example(), check_trace=False)
        frozen = torch.jit.freeze(traced)  # folds BatchNorm, after which the rest takes seconds
        graph = openvino_package().convert_model(frozen, example_input=_example())
    for port, name in zip(graph.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    graph.reshape({INPUTS[0]: [-1, 3, -1, -1], INPUTS[1]: [-1, 1]})
    return graph


def graph_to_bytes(graph: Any) -> tuple[bytes, bytes]:
    """A graph as OpenVINO writes it: its XML, and its weights."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / _FILE
        openvino_package().save_model(graph, file, compress_to_fp16=False)
        return file.read_bytes(), file.with_suffix(".bin").read_bytes()


def graph_from_bytes(graph: bytes, weights: bytes) -> Any:
    """The reverse of `graph_to_bytes`; RuntimeError where OpenVINO cannot read it."""
    return openvino_core().read_model(graph, weights)


def _digest(model: nn.Module) -> str:
    """A name for a network's weights, its layers and whatever made a graph of them."""
    digest = hashlib.sha256()
    for package in ("torch", "timm", "pytorch-toolbelt", _PACKAGE):
        digest.update(version(package).encode())
    for file in (Path(__file__), *sorted(Path(models.__path__[0]).glob("*.py"))):
        digest.update(file.read_bytes())
    for name, module in model.named_modules():
        plain = (bool, int, float, str, tuple, list)
        values = {k: v for k, v in sorted(vars(module).items()) if isinstance(v, plain)}
        digest.update(f"{name} {type(module)} {values}".encode())
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
