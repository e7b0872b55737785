"""What a device can do, and what goes wrong with one; asked by training and inference alike."""

import logging
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_DRIVER = Path("/proc/driver/nvidia/version")
_FIRST_GPU = Path("/dev/nvidia0")
# How libraries below torch say it; they raise no OutOfMemoryError. cuDNN's last way is that none of
# its algorithms could get its workspace.
_OUT_OF_MEMORY = (
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
    "Cannot allocate memory",
)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def has_int8_sums() -> bool:
    """Whether this CPU sums products of 8-bit numbers in 32 bits (VNNI).

    An x86 processor without that sums two of them in 16 bits, which can be too few.
    """
    features = torch.cpu.get_capabilities()
    known = ("avx512_vnni", "avx_vnni", "amx_int8")
    return features.get("architecture") != "x86_64" or any(features.get(name) for name in known)


def use_device(device: torch.device) -> None:
    """Makes a GPU the one that this thread uses.

    Each thread says so for itself: one that has not said it opens a context on the first GPU,
    hundreds of megabytes there, as soon as it waits for anything.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may round float32 factors to 10 bits of mantissa (TF32).

    Said for products and convolutions, because torch's own default lets convolutions use it. By
    torch's older switches alone: after its newer ones (`fp32_precision`) reading an older one
    raises, and other libraries read them.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that a device's memory is used up.

    torch's own allocator raises OutOfMemoryError; cuDNN, cuBLAS, the driver (AcceleratorError) and
    the CPU's allocator raise RuntimeErrors with words of theirs.
    """
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__
    return False


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on a device, without waiting until it is there."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@cache
def warn_of_unusable_gpu() -> None:
    """Says so, once, if this machine has an NVIDIA GPU that torch cannot use."""
    problem = _unusable_gpu()
    if problem:
        logger.warning("%s; computing on the CPU", problem)


def _unusable_gpu() -> str | None:
    if not (_DRIVER.exists() or _FIRST_GPU.exists()):
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return None  # hidden on purpose
    if torch.version.cuda is None:
        return (
            f"this machine has an NVIDIA GPU, and torch {torch.__version__} is built without CUDA; "
            "install torch for CUDA to use it"
        )
    return (
        f"this machine has an NVIDIA GPU, and torch {torch.__version__} cannot use it: its driver "
        f"({_driver_version()}) may be too old for CUDA {torch.version.cuda}; update the driver, "
        "or install a torch that is made for an older CUDA"
    )


def _driver_version() -> str:
    """`... Kernel Module  550.54.14  Thu ...` -> `550.54.14`."""
    try:
        words = _DRIVER.read_text(encoding="utf-8").split()
    except OSError:
        return "unknown"
    return next((word for word in words if word.replace(".", "").isdecimal()), "unknown")
