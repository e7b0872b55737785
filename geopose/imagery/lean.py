"""The lean of an image as the pixels see it: where a height lands, and the column over a place.

A surface of height h over the ground point g is seen at the pixel g - h k, with k in pixels per
metre of height. So everything that can stand over g lies on one line of the image, its column: the
ground is seen at g itself, and whatever is taller is seen further against the flow. The line is
walked in steps of one pixel along the axis that the flow follows more closely.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopose.geometry import angle_to_vector

_FARTHEST_PX = 2.0**30  # a shift beyond every image, that int32 still holds


@dataclass(frozen=True)
class Lean:
    """What a metre of height moves a surface in the image, on the way to its ground point.

    Attributes:
        right: pixels per metre to the right, single precision.
        down: pixels per metre downwards, single precision.
    """

    right: np.float32
    down: np.float32

    @staticmethod
    def of(scale_px_per_m: float, angle_rad: float) -> "Lean":
        """From an image's flow."""
        right, down = scale_px_per_m * angle_to_vector(angle_rad)
        return Lean(np.float32(right), np.float32(down))

    @property
    def px_per_m(self) -> float:
        """Steps of a column per metre of height: the larger one of the two shares."""
        return max(abs(float(self.right)), abs(float(self.down)))

    def shift(self, agl_m: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(rows, columns) in whole pixels from where heights are seen to their ground points.

        Halves go to the even number, on both sides of zero alike: a mirrored image gives mirrored
        shifts. Equal heights have equal shifts, so two of them never land in the same cell. NaN
        gives a shift out of every image.
        """
        return _whole(agl_m * self.down), _whole(agl_m * self.right)

    def steps(self, count: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(rows, columns) from a ground point to the pixel so many steps up its column."""
        steepest = self.px_per_m
        if steepest == 0.0:
            return np.zeros_like(count), np.zeros_like(count)
        rows = np.rint(count * (-float(self.down) / steepest)).astype(np.int32)
        columns = np.rint(count * (-float(self.right) / steepest)).astype(np.int32)
        return rows, columns

    def reach(self, lowest_m: float, highest_m: float) -> tuple[tuple[int, int], tuple[int, int]]:
        """((fewest, most) rows, (fewest, most) columns) that heights of a range are moved by."""
        heights = np.array([lowest_m, highest_m, 0.0], np.float32)
        rows, columns = self.shift(heights)
        return (int(rows.min()), int(rows.max())), (int(columns.min()), int(columns.max()))

    def column_length(self, highest_m: float) -> int:
        """Steps up a column until nothing is taller any more."""
        return math.ceil(min(max(highest_m, 0.0) * self.px_per_m, _FARTHEST_PX))


def _whole(shift_px: NDArray[np.float32]) -> NDArray[np.int32]:
    np.rint(shift_px, out=shift_px)
    np.fmin(shift_px, np.float32(_FARTHEST_PX), out=shift_px)  # takes the number if one is NaN
    np.maximum(shift_px, np.float32(-_FARTHEST_PX), out=shift_px)
    return shift_px.astype(np.int32)
