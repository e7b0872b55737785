"""Brings images of any sensor to one ground sampling, for training and predictions alike.

In: an image, its gsd and the one that is wanted. Out: the image in as many whole pixels as come
nearest to it. Colours are interpolated (bilinear), where an image shrinks over as many pixels as
fall together, so that fine texture becomes a mean and no pattern. Heights are picked, never mixed.
The edges of the image stay where they are: nothing shifts.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from geopose.augment.height import shrink_heights

LARGEST_ZOOM = 8.0  # beyond, an image is enlarged to no use
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
        """H x W metres, NaN = unknown; each that comes out is one of those that go in: the median
        of a block where at least two by two fall together, and of these the nearest."""
        if agl_m.shape == self.size:
            return agl_m
        block = max(1, int(min(agl_m.shape[0] / self.size[0], agl_m.shape[1] / self.size[1])))
        blocks = agl_m
        if block > 1:
            over = [(0, -length % block) for length in agl_m.shape]
            blocks = shrink_heights(np.pad(agl_m, over, constant_values=np.nan), block)
        rows, columns = (
            _nearest(before, after, block)
            for before, after in zip(agl_m.shape, self.size, strict=True)
        )
        return np.ascontiguousarray(blocks[np.ix_(rows, columns)])


def _nearest(before: int, after: int, block: int) -> NDArray[np.intp]:
    """Of `after` pixels along a side of `before`, the block that the middle of each lies in.

    Where it lies between two, it is the left and the right one in turn, so that nothing shifts.
    """
    number = np.arange(after)
    place = (number + 0.5) * before / after / block
    found = np.floor(place)
    found -= np.isclose(place, np.rint(place), rtol=0, atol=1e-9) & (number % 2 == 0)
    return np.clip(found, 0, -(-before // block) - 1).astype(np.intp)
