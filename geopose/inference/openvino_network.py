"""A network run by OpenVINO on a CPU: the loaded network in, the same function out.

Where the processor multiplies bfloat16 itself this is faster than torch, which repacks weights and
maps at every layer. Heights still come out in float32. OpenVINO is an optional package.
"""

import hashlib
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from geopose import models
from geopose.checkpoints.exportable import INPUTS, ExportableHeads
from geopose.checkpoints.fetch import checkpoint_cache
from geopose.errors import RunError
from geopose.inference.precision import BF16
from geopose.models.geopose_unet import GeoposeUNetModel, HeadOutputs, finish

_LOG = logging.getLogger(__name__)

_PACKAGE = "openvino"
_FILE = "network.xml"
_SIZES_KEPT = 2  # compiled networks: an image that is not square has views of two sizes


def has_openvino() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


def _openvino() -> Any:
    # At import OpenVINO reports its use to its makers, if this package of theirs can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # takes a while, and is rarely needed

    return openvino


class OpenVinoNetwork(nn.Module):
    """A network that is called like the one it was made from; for each size of image compiled anew.

    Networks of an ensemble take turns: one that begins has the others give back the memory of
    their maps.

    Args:
        model: a `GeoposeUNetModel` in eval mode, on the CPU.
        precision: fp32 or bf16.

    Raises:
        Exception: the network has a part that OpenVINO does not know.
    """

    uses_torch_memory = False
    _working: ReferenceType["OpenVinoNetwork"] | None = None  # the one whose maps are in memory

    def __init__(self, model: GeoposeUNetModel, precision: str) -> None:
        super().__init__()
        self._graph = _converted(model)
        self._stride, self._head_stride = model.stride, int(model.agl_head.stride)  # type: ignore[arg-type]
        heads = _heads(model)
        self._given = [name for name, value in heads._asdict().items() if value is not None]
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == BF16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # processes side by side would all take the first cores
        }
        self._compiled: OrderedDict[torch.Size, Any] = OrderedDict()

    def forward(self, image: Tensor, gsd: Tensor) -> dict[str, Tensor]:
        """Predicts the pose of every image; arguments and result as those of the network.

        Raises:
            RunError: OpenVINO fails, such as for lack of memory.
        """
        try:
            self._take_turn()
            request = self._for_size(image.shape)
            found = request.infer([image.float().numpy(), gsd.float().numpy()]).to_tuple()
        except (RuntimeError, MemoryError) as error:
            size = " x ".join(map(str, image.shape))
            raise RunError(
                f"OpenVINO failed on an input of {size} ({_first_words(error)}); use "
                "inference.backend=eager"
            ) from error
        tensors = [torch.from_numpy(value.copy()) for value in found]
        given = dict(zip(self._given, tensors, strict=True))
        heads = HeadOutputs(*(given.get(name) for name in HeadOutputs._fields))  # type: ignore[arg-type]
        return finish(heads, image.shape[-2:], self._stride, self._head_stride)

    def _take_turn(self) -> None:
        """Has another network, if there is one, give back the memory of its maps."""
        working = OpenVinoNetwork._working
        other = working() if working is not None else None
        if other is not None and other is not self:
            for request in other._compiled.values():
                request.get_compiled_model().release_memory()
        OpenVinoNetwork._working = ref(self)

    def _for_size(self, shape: torch.Size) -> Any:
        """What computes images of this shape."""
        if shape in self._compiled:
            self._compiled.move_to_end(shape)
            return self._compiled[shape]
        while len(self._compiled) >= _SIZES_KEPT:
            self._compiled.popitem(last=False)
        graph = self._graph.clone()
        graph.reshape({INPUTS[0]: list(shape), INPUTS[1]: [shape[0], 1]})
        settings = {**self._settings, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        program = _openvino().Core().compile_model(graph, "CPU", settings)
        self._compiled[shape] = program.create_infer_request()
        return self._compiled[shape]


def _converted(model: GeoposeUNetModel) -> Any:
    """OpenVINO's graph of a network, from the cache if it was made before."""
    folder = checkpoint_cache() / _PACKAGE / _digest(model)
    openvino = _openvino()
    if (folder / _FILE).exists():
        return openvino.Core().read_model(folder / _FILE)
    _LOG.info("converting a network for OpenVINO, once; later runs find it in %s", folder.parent)
    graph = _convert(model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as name:
            part = Path(name) / "part"
            part.mkdir()
            openvino.save_model(graph, part / _FILE, compress_to_fp16=False)
            if not folder.exists():  # another process may have been faster
                part.rename(folder)
    except (OSError, RuntimeError) as error:
        _LOG.warning("%s: cannot be kept for later runs (%s)", folder, _first_words(error))
    return graph


def _example() -> tuple[Tensor, Tensor]:
    """An input; any size would do."""
    return torch.zeros(1, 3, 64, 96), torch.full((1, 1), 0.5)


def _heads(model: GeoposeUNetModel) -> HeadOutputs:
    with torch.no_grad():
        return model.heads(*_example())


def _convert(model: GeoposeUNetModel) -> Any:
    """The graph up to the heads; what follows would be rounded to bfloat16 with the rest."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's tracer, about itself
        traced = torch.jit.trace(ExportableHeads(model).eval(), _example(), check_trace=False)
        frozen = torch.jit.freeze(traced)  # folds BatchNorm, after which the rest takes seconds
        graph = _openvino().convert_model(frozen, example_input=_example())
    for port, name in zip(graph.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    return graph


def _digest(model: nn.Module) -> str:
    """A name for a network's weights, its layers and whatever made a graph of them."""
    digest = hashlib.sha256(repr(model).encode())
    for package in ("torch", "timm", "pytorch-toolbelt", _PACKAGE):
        digest.update(version(package).encode())
    for file in _sources():
        digest.update(file.read_bytes())
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _sources() -> Iterator[Path]:
    """The code that the graph follows from."""
    for folder in models.__path__:
        yield from sorted(Path(folder).glob("*.py"))


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
