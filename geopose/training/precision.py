"""Number formats of a training: which operations run in 16 bits, and the scaling that fp16 needs.

In: the name in `optimizer.precision`. Out: a context for the forward pass and a gradient scaler.
Losses and the scale head are float32 whatever is chosen.
"""

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from geopose.errors import InputError
from geopose.system.devices import allow_tf32, has_native_bf16

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "amp")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ON_CPU = {
    "tf32": "tf32 is a format of GPUs: on this CPU it is fp32",
    "fp16": "fp16 trains many times slower than fp32 on a CPU; use fp32, bf16 or amp",
}


def resolve_precision(name: str, device: torch.device) -> str:
    """What `amp` means on a device; other names stay as they are.

    On a GPU bf16 where it has it, else fp16; on a CPU bf16 where the processor computes in it
    (elsewhere it is emulated and slow), else fp32.

    Raises:
        InputError: bf16 on a GPU that does not have it.
    """
    if name == "amp":
        if has_native_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name == "bf16" and device.type == "cuda" and not has_native_bf16(device):
        raise InputError("optimizer.precision=bf16: this GPU does not compute in it; use fp16")
    return name


class Precision:
    """The number format of a run.

    Args:
        name: one of PRECISIONS.
        device: where the network runs.

    Attributes:
        name: what was chosen, with `amp` resolved.
        scaler: keeps fp16 gradients within range; passes everything through for other formats.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = resolve_precision(name, device)
        self._device_type = device.type
        self._dtype = _AUTOCAST.get(self.name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        if device.type == "cuda":
            allow_tf32(self.name == "tf32")
        elif self.name in _ON_CPU:
            logger.info("optimizer.precision=%s: %s", name, _ON_CPU[self.name])

    def autocast(self) -> torch.autocast:
        """The context in which the network runs."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None)

    def adapt(self, network: nn.Module) -> None:
        """Has a network compute in float32 what 16 bits make worse or slower.

        The last convolution of heights, because bf16 has steps of 0.125 to 0.5 m between 16 and
        128 m. On a CPU in bf16 also depthwise convolutions that are strided or larger than 3 x 3,
        half the time of an EfficientNet's step: their backward pass takes 3 to 10 times as long as
        in float32. Weights and names stay as they are.
        """
        if self._dtype is not None:
            for conv in _last_of_heights(network):
                conv.__class__ = _all_in_float32(type(conv))  # type: ignore[arg-type]
        if self._device_type != "cpu" or self.name != "bf16":
            return
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and _is_slow_in_bf16(module):
                module.__class__ = _in_float32(type(module))  # type: ignore[arg-type]

    @property
    def likes_channels_last(self) -> bool:
        """Whether that memory layout is for this format: not for IEEE float32 on a GPU.

        There it is made for the units that multiply TF32 and 16 bits, and torch's own layout is
        the safe one until scripts/gpu_check.sh has measured both.
        """
        return not (self._device_type == "cuda" and self.name == "fp32")

    @property
    def can_still_lower_scale(self) -> bool:
        """True while a gradient that overflows is fp16's scaler at work and no fault."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0


def _last_of_heights(network: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a network's height head from which heights come.

    Not those of magnitudes: of them only the scale is used, a mean over all pixels, and their maps
    in float32 would take as much memory again.
    """
    head = getattr(network, "agl_head", nn.Identity())
    return [
        module
        for name, module in head.named_modules()
        if name.startswith("height") and isinstance(module, nn.Conv2d) and module.out_channels == 1
    ]


@lru_cache
def _all_in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """A kind of convolution that computes and answers in float32."""

    def forward(self: Any, x: Tensor, *more: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return kind.forward(self, x.float(), *more)

    return type(f"Float32Output{kind.__name__}", (kind,), {"forward": forward})


def _is_slow_in_bf16(conv: nn.Conv2d) -> bool:
    is_depthwise = conv.groups == conv.in_channels > 1
    return is_depthwise and (max(conv.kernel_size) > 3 or max(conv.stride) > 1)


@lru_cache
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """A kind of convolution that computes in float32 and answers in the format it was asked in.

    A class and not a changed method of each object, because networks are copied (for averages).
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return kind.forward(self, x.float()).to(x.dtype)

    return type(f"Float32{kind.__name__}", (kind,), {"forward": forward})
