"""Brings images of any sensor to one ground sampling, for training and predictions alike.

In: an image, its gsd and the one that is wanted. Out: the image in as many whole pixels as come
nearest to it. Shrinking takes the mean of what falls together, so that a fine image looks as a
coarse sensor would have seen it; enlarging is bilinear. Edges stay edges: nothing shifts.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from geopose.augment.height import warp_heights

_ALIKE = 1e-4  # relative difference of two gsds that is not worth resizing for


class Resize(NamedTuple):
    """From one number of pixels to another.

    Attributes:
        size: (height, width) that come out.
        zoom: by which things grow; the root of that of their area.
    """

    size: tuple[int, int]
    zoom: float

    @staticmethod
    def between(size: tuple[int, int], gsd_m: float, wanted_m: float | None) -> "Resize":
        """What brings an image of `size` (height, width) and `gsd_m` to `wanted_m` metres per
        pixel; None = it keeps its own."""
        if wanted_m is None or math.isclose(gsd_m, wanted_m, rel_tol=_ALIKE):
            return Resize(size, 1.0)
        rows, columns = (max(1, round(length * gsd_m / wanted_m)) for length in size)
        return Resize((rows, columns), math.sqrt(rows * columns / (size[0] * size[1])))

    def image(self, image: Tensor) -> Tensor:
        """N x 3 x H x W, float or uint8 (on a CPU), to N x 3 x `size`."""
        if image.shape[-2:] == self.size:
            return image
        return F.interpolate(
            image, size=self.size, mode="bilinear", align_corners=False, antialias=True
        )

    def rgb(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same for H x W x 3."""
        if rgb.shape[:2] == self.size:
            return rgb
        planes = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
        found: NDArray[np.uint8] = self.image(planes)[0].permute(1, 2, 0).contiguous().numpy()
        return found

    def heights(self, agl_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """H x W metres, NaN = unknown; each that comes out is the nearest of those that go in."""
        if agl_m.shape == self.size:
            return agl_m
        steps = [before / after for before, after in zip(agl_m.shape, self.size, strict=True)]
        y, x = steps
        to_input = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])
        return warp_heights(agl_m, to_input, self.size)
