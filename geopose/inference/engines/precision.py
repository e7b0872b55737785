"""Which numbers a network computes in on a device: what a config asks for, and what there is."""

import logging

import torch

from geopose.system.devices import has_native_bf16
from geopose.words import AUTO, BF16, FP16, FP32, TF32

logger = logging.getLogger(__name__)

_TYPES = {BF16: torch.bfloat16, FP16: torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The precision that a device computes in when a config wants this one.

    `auto` is fp32 on a CPU and tf32 on a GPU: float32 results whose convolutions are rounded to 10
    bits of mantissa, which changes heights by millimetres.

    Returns:
        fp32, tf32, bf16 or fp16; what the device cannot do becomes fp32 (tf32 on a GPU).
    """
    if device.type == "cuda":
        lacking = wanted == BF16 and not has_native_bf16(device)
        return TF32 if wanted == AUTO or lacking else wanted
    return BF16 if wanted == BF16 and has_native_bf16(device) else FP32


def input_type(precision: str) -> torch.dtype:
    """The number format of a network's maps in this precision."""
    return _TYPES.get(precision, torch.float32)


def warn_of_precision(wanted: str, device: torch.device) -> None:
    """Says so when a device cannot do what the config asks for."""
    found = resolve_precision(wanted, device)
    if wanted not in (AUTO, found) and not (wanted == TF32 and found == FP32):
        logger.warning("%s cannot compute in %s; computing in %s", device.type, wanted, found)
