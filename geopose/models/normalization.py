"""How an image becomes a network's input: order of its planes, mean and deviation of each."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose.errors import InputError, one_line
from geopose.schema.numbers import is_number

CHANNEL_ORDERS = {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}


class Normalization(NamedTuple):
    """Mean and deviation of the three planes as the network takes them, of values from 0 to 1.

    They belong to the first, second and third plane in either channel order, as the published
    models were trained.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_config(cls, config: Any, where: str) -> "Normalization":
        """What `model.normalization` says: `{mean: [3 numbers], std: [3 numbers above 0]}`.

        Args:
            config: the mapping; None = ImageNet's, as the published models.
            where: how messages name it.

        Raises:
            InputError: something else.
        """
        if config is None:
            return IMAGENET
        if not isinstance(config, Mapping) or set(config) != {"mean", "std"}:
            raise InputError(
                f"{where}: expected encoder, null, or {{mean: [...], std: [...]}}, "
                f"got {one_line(repr(config), 80)}"
            )
        for name, above in (("mean", -math.inf), ("std", 0.0)):
            values = config[name]
            if not _are_three(values) or not all(above < value < math.inf for value in values):
                kind = "numbers above 0" if name == "std" else "numbers"
                raise InputError(
                    f"{where}.{name}: expected three {kind}, got {one_line(repr(values), 80)}"
                )
        return cls(tuple(map(float, config["mean"])), tuple(map(float, config["std"])))  # type: ignore[arg-type]

    def planes(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation as 1 x 3 x 1 x 1 float32, still of values from 0 to 1."""
        mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in self)
        return mean, std


IMAGENET = Normalization()


def _are_three(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(is_number(value) for value in values)
    )


def normalize_image(
    rgb: NDArray[np.uint8], channel_order: str, normalization: Normalization = IMAGENET
) -> Tensor:
    """The network's input of an image: `(x - 255 mean) / (255 std)`, channels in model order.

    Args:
        rgb: H x W x 3 uint8, channels R, G, B.
        channel_order: "rgb" or "bgr", a property of the model.
        normalization: likewise.

    Returns:
        3 x H x W float32 tensor.

    Raises:
        InputError: no such channel order.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise InputError(f"channel_order is {channel_order!r}, expected rgb or bgr")
    planes = np.empty((3, *rgb.shape[:2]), dtype=np.float32)
    for plane, source, mean, std in zip(
        planes, CHANNEL_ORDERS[channel_order], *normalization, strict=True
    ):
        # A table of the 256 results takes a third of the time of computing every pixel.
        table = np.arange(256, dtype=np.float32) - np.float32(255 * mean)
        table *= np.float32(1 / (255 * std))
        cv2.LUT(cv2.extractChannel(rgb, source), table, dst=plane)
    return torch.from_numpy(planes)


def denormalize_image(
    image: Tensor, channel_order: str, normalization: Normalization = IMAGENET
) -> NDArray[np.uint8]:
    """The picture that `normalize_image` made a tensor of: 3 x H x W -> H x W x 3 uint8 RGB."""
    mean, std = (255 * part[0] for part in normalization.planes())
    planes = (image.float() * std + mean).round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(np.moveaxis(planes[list(CHANNEL_ORDERS[channel_order])], 0, -1))
