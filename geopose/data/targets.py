"""What a network can learn to say of an image: targets of a sample from its heights and flow.

In: heights, scale and angle after augmentation. Out: tensors by key. An output that can be learned
is a key of `geopose.keys` with a function here; losses refer to it by `target_key`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose import keys
from geopose.geometry import angle_to_vector, flow_map


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
# Training makes these of a batch on the device, which is cheaper than to send them there.
ON_DEVICE: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    keys.TARGET_FLOW_MASK: lambda batch: flow_map(
        batch[keys.TARGET_MAGNITUDE_MASK], batch[keys.TARGET_VFLOW_DIRECTION]
    ),
    keys.TARGET_LEAN: lambda batch: (
        batch[keys.TARGET_VFLOW_SCALE] * batch[keys.INPUT_GROUND_SAMPLE_DISTANCE]
    ),
}


class Variances(NamedTuple):
    """How much the truth of a city varies, by the definition of the score.

    Attributes:
        agl_m2: mean squared deviation of the heights, square metres.
        flow_px2: that of the flow, both components added, square pixels of the images as they are.
    """

    agl_m2: float
    flow_px2: float


VARIANCES = (keys.TARGET_AGL_VARIANCE, keys.TARGET_FLOW_VARIANCE)  # only where they are given


def variance_targets(variances: Variances, zoom: float) -> dict[str, Tensor]:
    """The variances of a sample's city, each of shape (1,).

    Args:
        variances: of the images as they are.
        zoom: pixels of the sample for a pixel of the image; flow is in pixels of the sample.
    """
    values = (variances.agl_m2, variances.flow_px2 * zoom**2)
    return {key: _scalar(value) for key, value in zip(VARIANCES, values, strict=True)}


def make_targets(
    agl_m: NDArray[np.float32], scale_px_per_m: float, angle_rad: float
) -> dict[str, Tensor]:
    """All targets of a sample, from H x W heights in metres."""
    agl = torch.from_numpy(np.ascontiguousarray(agl_m, dtype=np.float32))[None]
    return {key: make(agl, scale_px_per_m, angle_rad) for key, make in TARGETS.items()}


def target_keys() -> tuple[str, ...]:
    """What a loss can compare with."""
    return (*TARGETS, *ON_DEVICE, *VARIANCES)


def device_targets(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The targets of a batch (N samples) that follow from its other targets and gsd."""
    return {key: make(batch) for key, make in ON_DEVICE.items()}
