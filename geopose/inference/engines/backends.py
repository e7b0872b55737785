"""How a network is run: the loaded model in, the same function out as the device runs it best."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from geopose.checkpoints.remote.fetch import checkpoint_cache
from geopose.errors import InputError, RunError, one_line
from geopose.inference.engines.openvino_engine import OpenVinoNetwork, has_openvino
from geopose.inference.engines.precision import BF16, input_type, set_precision
from geopose.models.geopose_unet import GeoposeUNetModel
from geopose.models.simplify import simplify

logger = logging.getLogger(__name__)

AUTO, EAGER, COMPILE, OPENVINO = "auto", "eager", "compile", "openvino"
BACKENDS = (AUTO, EAGER, COMPILE, OPENVINO)
# Runs of a network (models x views x images) from which compiling for a minute or two pays. On a
# CPU the simplified network is as fast without, and as fast as OpenVINO.
LEAST_RUNS_TO_COMPILE = 10_000
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def resolve_backend(wanted: str, device: torch.device, runs: int) -> str:
    """The backend that a config means; `auto` is compiled on a GPU in long runs, else eager.

    Args:
        wanted: of the config.
        device: where the networks run.
        runs: models x views x images of one process.

    Raises:
        InputError: OpenVINO is wanted but not installed, or not on a CPU.
    """
    if wanted == AUTO:
        pays = device.type == "cuda" and runs >= LEAST_RUNS_TO_COMPILE
        return COMPILE if pays else EAGER
    if wanted == OPENVINO and device.type != "cpu":
        raise InputError(
            f"inference.backend: openvino computes on a CPU, and this run is on {device}; use "
            f"auto, {EAGER} or {COMPILE}"
        )
    if wanted == OPENVINO and not has_openvino():
        raise InputError(
            "inference.backend: the openvino package is not installed; pip install openvino, or "
            f"use auto, {EAGER} or {COMPILE}"
        )
    return wanted


def prepare(model: nn.Module, backend: str, precision: str) -> nn.Module:
    """A network ready for many images; still on the host.

    Args:
        model: from a checkpoint, float32 in eval mode. Networks of other kinds (an .onnx file) come
            back as they are.
        backend: "eager", "compile" or "openvino"; as resolved for the device.
        precision: as resolved for the device.

    Raises:
        RunError: OpenVINO does not know a layer, and the precision is bf16. In float32 the network
            runs without it, as one does that cannot be compiled; a warning says so.
    """
    if not isinstance(model, GeoposeUNetModel):
        return model
    if backend == OPENVINO:
        try:
            return OpenVinoNetwork(model, precision)
        except Exception as error:  # a layer that it does not know; whatever it raises
            if precision == BF16:  # the run has said that OpenVINO does the rounding
                raise RunError(
                    f"OpenVINO cannot run a network ({_reason(error)}); use inference.backend=eager"
                ) from error
            logger.warning("OpenVINO failed, going on without it: %s", _reason(error))
    model = set_precision(simplify(model), precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Compiled(model) if backend == COMPILE else model


def takes(model: nn.Module, precision: str) -> torch.dtype:
    """The number format of what a prepared network is shown."""
    return (
        input_type(precision) if isinstance(model, (GeoposeUNetModel, Compiled)) else torch.float32
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"


class Compiled(nn.Module):
    """A network through torch.compile, once for each size of image; what fails runs as it is.

    What the compiler makes is kept in the cache of checkpoints, so later runs start sooner.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        os.environ.setdefault(_CACHE_VARIABLE, str(checkpoint_cache() / "compiled"))
        # Each network has its own share of the number of shapes that torch compiles at most; its
        # annotations do not know the option yet.
        options: dict[str, Any] = {"dynamic": False, "isolate_recompiles": True}
        self._compiled: Any = torch.compile(model, **options)

    def forward(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        """The network's outputs."""
        if self._compiled is not None:
            try:
                return self._compiled(image, gsd_m)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler, a driver or a missing g++ raises
                cause = getattr(error, "inner_exception", None)
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from error
                self._compiled = None
                logger.warning("torch.compile failed, going on without it: %s", _reason(error))
        return self.model(image, gsd_m)
