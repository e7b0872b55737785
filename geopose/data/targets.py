"""What a network can learn to say of an image: targets of a sample from its heights and flow.

In: heights, scale and angle after augmentation. Out: tensors by key. An output that can be learned
is a key of `geopose.keys` with a function here; losses refer to it by `target_key`.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose import keys
from geopose.geometry import angle_to_vector


def _scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32)


def _direction(angle_rad: float) -> Tensor:
    return torch.tensor(angle_to_vector(np.float64(angle_rad)), dtype=torch.float32)


# Each takes heights (1 x H x W metres, NaN = unknown), scale (px per metre) and angle (radians).
TARGETS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    keys.TARGET_AGL_MASK: lambda agl_m, scale, angle_rad: agl_m,
    keys.TARGET_MAGNITUDE_MASK: lambda agl_m, scale, angle_rad: agl_m * scale,
    keys.TARGET_VFLOW_SCALE: lambda agl_m, scale, angle_rad: _scalar(scale),
    keys.TARGET_VFLOW_ANGLE: lambda agl_m, scale, angle_rad: _scalar(angle_rad),
    keys.TARGET_VFLOW_DIRECTION: lambda agl_m, scale, angle_rad: _direction(angle_rad),
}
# Training makes these of the others on the device, which is cheaper than to send them there.
ON_DEVICE = (keys.TARGET_FLOW_MASK,)


def make_targets(
    agl_m: NDArray[np.float32], scale_px_per_m: float, angle_rad: float
) -> dict[str, Tensor]:
    """All targets of a sample, from H x W heights in metres."""
    agl = torch.from_numpy(np.ascontiguousarray(agl_m, dtype=np.float32))[None]
    return {key: make(agl, scale_px_per_m, angle_rad) for key, make in TARGETS.items()}


def target_keys() -> tuple[str, ...]:
    """What a loss can compare with."""
    return (*TARGETS, *ON_DEVICE)
