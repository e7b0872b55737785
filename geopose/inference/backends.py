"""How a network is run: the loaded model in, the same function out as the device runs it best."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from geopose.checkpoints.fetch import checkpoint_cache
from geopose.errors import InputError
from geopose.inference.precision import set_precision
from geopose.models.geopose_unet import GeoposeUNetModel
from geopose.models.simplify import simplify

_LOG = logging.getLogger(__name__)

AUTO, EAGER, COMPILE = "auto", "eager", "compile"
BACKENDS = (AUTO, EAGER, COMPILE)
# Runs of a network (models x views x images) from which compiling for a minute or two pays. On a
# CPU the simplified network is as fast without.
LEAST_RUNS_TO_COMPILE = 10_000
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def check_backend(name: object) -> None:
    """Raises InputError unless `name` is a known backend."""
    if name not in BACKENDS:
        raise InputError(f"inference.backend: unknown value {name!r}, use {', '.join(BACKENDS)}")


def resolve_backend(wanted: str, device: torch.device, runs: int) -> str:
    """The backend that `auto` means: compiled on a GPU in long runs, else eager.

    Args:
        wanted: of the config.
        device: where the networks run.
        runs: models x views x images of one process.
    """
    if wanted != AUTO:
        return wanted
    return COMPILE if device.type == "cuda" and runs >= LEAST_RUNS_TO_COMPILE else EAGER


def prepare(model: nn.Module, backend: str, precision: str) -> nn.Module:
    """A network ready for many images; still on the host.

    Args:
        model: from a checkpoint, float32 in eval mode. Networks of other kinds (an .onnx file) come
            back as they are.
        backend: "eager" or "compile".
        precision: as resolved for the device.
    """
    if not isinstance(model, GeoposeUNetModel):
        return model
    model = set_precision(simplify(model), precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Compiled(model) if backend == COMPILE else model


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
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                _LOG.warning("torch.compile failed, going on without it: %s", reason)
        return self.model(image, gsd_m)
