"""What number formats a device computes in; asked by training and inference alike."""

import torch


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may round float32 factors to 10 bits of mantissa (TF32).

    Said for products and convolutions, because torch's own default lets convolutions use it.
    """
    kind = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
