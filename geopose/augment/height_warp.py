"""Makes everything in an image taller or lower, moving what is seen along the flow.

In: an image with heights and flow, and a factor. Out: the image as it would be with heights
`factor` times as large, under the same sensor. A surface of height h is seen h k pixels from its
ground point, against the flow (`geopose.geometry`), so it moves by (factor - 1) h k. For each
pixel of the result the pixels that could move there lie on one line; it is walked in steps of one
pixel, and of the surfaces met the highest stays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError, one_line
from geopose.geometry import angle_to_vector
from geopose.schema.numbers import is_number

TALLEST_M = 120.0  # of what may lean into a crop from outside; what is taller is cut off there
_FACTORS = (0.25, 4.0)
_JUMP_M = 2.0  # more than this from pixel to pixel is no slope but the edge of what hides the rest
_STEEPEST_M = 8.0  # the same beside the line, where walls are steepest
_ALIKE_M = 1.0  # of two places on the same ground
_LEAST_STEPS = 0.05  # what moves by less stays
_RIM = 1  # pixels around what is walked on, for neighbours
_UNKNOWN = np.float32(-1e6)  # a height below all, in place of NaN


@dataclass(frozen=True)
class HeightWarpRange:
    """What may be drawn.

    Attributes:
        probability: of a sample to be changed at all, 0 to 1.
        least, largest: factors of heights; drawn evenly by their logarithm.
    """

    probability: float
    least: float
    largest: float

    @staticmethod
    def of(given: Mapping[str, Any]) -> "HeightWarpRange":
        """From `probability` and `factor: [least, largest]` of a config.

        Raises:
            InputError: other keys, or values out of range.
        """
        if set(given) != {"probability", "factor"}:
            raise InputError(
                f"train.height_warp holds {one_line(sorted(map(str, given)), 80)}, must be null or "
                "hold probability and factor"
            )
        probability, factor = given["probability"], given["factor"]
        if not is_number(probability) or not 0 <= probability <= 1:
            raise InputError(
                f"train.height_warp.probability is {one_line(probability, 40)}, must be a number "
                "from 0 to 1"
            )
        ends = factor if isinstance(factor, list | tuple) and len(factor) == 2 else [0, 0]
        if not all(map(is_number, ends)) or not _FACTORS[0] <= ends[0] <= ends[1] <= _FACTORS[1]:
            raise InputError(
                f"train.height_warp.factor is {one_line(factor, 40)}, must be two numbers from "
                f"{_FACTORS[0]:g} to {_FACTORS[1]:g}, the least first"
            )
        return HeightWarpRange(float(probability), float(ends[0]), float(ends[1]))

    def draw(self, rng: np.random.Generator) -> float:
        """A factor, 1.0 where a sample is to stay as it is; always the same number of draws."""
        chance, place = rng.random(2)
        if chance >= self.probability:
            return 1.0
        return float(self.least * (self.largest / self.least) ** place)


@dataclass(frozen=True)
class _Walk:
    """The way from a pixel of the result to where its surfaces are now.

    Attributes:
        right, down: of one step, in pixels; the larger one is 1.
        steps_per_m: by how many steps a metre of height moves.
        wall_m: how much an upright wall may rise from a pixel to the one beside the line.
        taller: whether heights grow.
    """

    right: float
    down: float
    steps_per_m: float
    wall_m: float
    taller: bool

    @staticmethod
    def of(scale_px_per_m: float, angle_rad: float, factor: float) -> "_Walk":
        """Of an image's flow."""
        right, down = (float(x) for x in angle_to_vector(angle_rad))
        sign = 1.0 if factor > 1 else -1.0
        longer = max(abs(right), abs(down))
        steps_per_m = scale_px_per_m * abs(factor - 1) * longer
        across = scale_px_per_m * min(abs(right), abs(down))
        wall_m = 1.1 / across if across else 0.0
        return _Walk(sign * right / longer, sign * down / longer, steps_per_m, wall_m, factor > 1)

    def offset(self, step: int) -> tuple[int, int]:
        """(rows, columns) of so many steps, in whole pixels."""
        return round(step * self.down), round(step * self.right)

    def beside(self, step: int) -> tuple[tuple[int, int], float]:
        """((rows, columns) to the neighbour on the other side of the exact line, how far the line
        is on the way there)."""
        rows, columns = step * self.down, step * self.right
        off = (rows - round(rows), columns - round(columns))
        return (int(np.sign(off[0])), int(np.sign(off[1]))), max(map(abs, off))


def margins(
    scale_px_per_m: float, angle_rad: float, factor: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((above, below), (left, right)): how many pixels around a window can move into it."""
    walk = _Walk.of(scale_px_per_m, angle_rad, factor)
    far = math.ceil(walk.steps_per_m * TALLEST_M) + 1 if walk.steps_per_m else 0
    rows, columns = walk.offset(far)
    return (max(-rows, 0), max(rows, 0)), (max(-columns, 0), max(columns, 0))


def warp_height(
    image: NDArray[np.uint8],
    agl_m: NDArray[np.float32],
    scale_px_per_m: float,
    angle_rad: float,
    factor: float,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """An image with heights `factor` times as large; scale, angle and gsd stay.

    Args:
        image: H x W x 3 uint8.
        agl_m: H x W metres, NaN = unknown: such pixels stay where they are.
        scale_px_per_m: flow of a metre, in pixels of this image.
        angle_rad: its direction.
        factor: above 0.

    Returns:
        Image and heights of the same size. Where something gets lower and the image has not seen
        what was hidden behind it, heights are NaN and colours those of the ground behind, mirrored
        at the edge. NaN also where a surface comes from beyond the border or from unknown heights.
    """
    walk = _Walk.of(scale_px_per_m, angle_rad, factor)
    highest = float(np.fmax.reduce(agl_m, axis=None))
    if factor == 1.0 or not highest * walk.steps_per_m > 0:
        return image, agl_m if factor == 1.0 else agl_m * np.float32(factor)
    steps, heights = _Field(agl_m, walk, highest).landed()
    heights *= np.float32(factor)
    columns = np.arange(agl_m.shape[1], dtype=np.float32) + steps * np.float32(walk.right)
    rows = np.arange(agl_m.shape[0], dtype=np.float32)[:, None] + steps * np.float32(walk.down)
    moved = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8), heights


class _Field:
    """Heights with unknown ones around them, so that a step is a shifted view."""

    def __init__(self, agl_m: NDArray[np.float32], walk: _Walk, highest_m: float) -> None:
        self._shape, self._walk = agl_m.shape, walk
        self._longest = math.floor(highest_m * walk.steps_per_m) + 1
        rows, columns = walk.offset(self._longest + 1)
        self._first = max(-rows, 0) + _RIM, max(-columns, 0) + _RIM
        size = agl_m.shape[0] + abs(rows) + 2 * _RIM, agl_m.shape[1] + abs(columns) + 2 * _RIM
        padded = np.full(size, _UNKNOWN)
        self._own = self._view(padded, 0)
        np.copyto(self._own, agl_m, where=~np.isnan(agl_m))
        self._agl_m = padded.reshape(-1)
        self._width = size[1]
        # Moves in half steps: small whole numbers are compared several times as fast.
        self._halves = np.maximum(padded * np.float32(2 * walk.steps_per_m), 0).astype(
            np.uint8 if 2 * self._longest < 254 else np.uint16
        )
        self._per_m = np.float32(walk.steps_per_m)
        self._slope_m = np.float32(max(_JUMP_M, min(walk.wall_m, _STEEPEST_M)))

    def _view(self, array: NDArray, step: int) -> NDArray:
        """What lies so many steps from each pixel."""
        row, column = (a + b for a, b in zip(self._first, self._walk.offset(step), strict=True))
        return array[row : row + self._shape[0], column : column + self._shape[1]]

    def landed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For each pixel: how many steps away what it shows is now, and its height there."""
        heights, steps = self._own.copy(), np.zeros(self._shape, np.float32)
        edges = np.full(self._shape, -1, np.int32)
        leaving = self._own * self._per_m > _LEAST_STEPS
        heights[leaving | (self._own == _UNKNOWN)] = np.nan
        for step in range(self._longest):
            here, ahead = self._view(self._halves, step), self._view(self._halves, step + 1)
            far = here >= 2 * step if step else leaving
            places = np.flatnonzero((ahead < 2 * step + 2) & (far | (ahead > 2 * step)))
            if len(places):
                self._meet(step, places, steps, heights, edges)
        if not self._walk.taller:  # else: from beyond the border, or unknown; it stays as it is
            self._fill(steps, np.flatnonzero(np.isnan(heights) & (edges >= 0) & leaving), edges)
        return steps, heights

    def _meet(
        self, step: int, places: NDArray, steps: NDArray, heights: NDArray, edges: NDArray
    ) -> None:
        """Surfaces that land between a step and the next; later ones are higher."""
        corner = self._first[0] * self._width + self._first[1]
        rows, columns = np.divmod(places, self._shape[1])
        own = rows * self._width + columns + corner
        height, next_height = (self._agl_m[own + self._position(n)] for n in (step, step + 1))
        move, next_move = height * self._per_m - step, next_height * self._per_m - step
        rise = next_height - height if self._walk.taller else height - next_height
        jump = (rise > _JUMP_M) | (next_height == _UNKNOWN) | (move < 0)
        # At an edge, each pixel has its own half.
        second = next_move >= np.float32(0.5)
        lands = ~jump | second | (move <= np.float32(0.5)) & (move >= 0)
        edges.reshape(-1)[places[~lands]] = step
        found = np.where(jump & second, next_height, height)
        sloped = np.flatnonzero(~jump & (height != next_height))
        found[sloped] = self._between(own[sloped], step)
        steps.reshape(-1)[places[lands]] = found[lands] * self._per_m
        heights.reshape(-1)[places[lands]] = found[lands]

    def _position(self, step: int) -> int:
        rows, columns = self._walk.offset(step)
        return rows * self._width + columns

    def _between(self, own: NDArray, step: int) -> NDArray[np.float32]:
        """Heights of slopes where they are met, between a step and the next."""
        first, second = (self._on_line(own, number) for number in (step, step + 1))
        over, fall = first * self._per_m - step, (first - second) * self._per_m + 1
        share = np.clip(over / np.maximum(fall, np.float32(0.1)), -0.5, 1.5)
        return first + share * (second - first)

    def _on_line(self, own: NDArray, step: int) -> NDArray[np.float32]:
        """Heights so many steps away, between the two pixels that the line passes through."""
        places = own + self._position(step)
        beside, share = self._walk.beside(step)
        height = self._agl_m[places]
        more = self._agl_m[places + beside[0] * self._width + beside[1]] - height
        more[np.abs(more) > self._slope_m] = 0  # another surface
        return height + np.float32(share) * more

    def _fill(
        self, steps: NDArray[np.float32], places: NDArray[np.intp], edges: NDArray[np.int32]
    ) -> None:
        """Colours of what nobody has seen: from the ground behind, as a mirror at the edge shows
        it, or, where something else stands there, from next to the edge."""
        edge = edges.reshape(-1)[places]
        behind, mirrored = (self._lookup(places, edge * n + n) for n in (1, 2))
        alike = np.abs(mirrored - behind) < _ALIKE_M
        alike &= (behind > _UNKNOWN) & (mirrored > _UNKNOWN)
        steps.reshape(-1)[places] = np.where(alike, 2 * edge + 2, edge + 2)

    def _lookup(self, places: NDArray[np.intp], step: NDArray[np.int32]) -> NDArray[np.float32]:
        """Heights at each pixel's own number of steps; unknown outside."""
        rows, columns = np.divmod(places, self._shape[1])
        rows = rows + np.rint(step * self._walk.down).astype(np.intp)
        columns = columns + np.rint(step * self._walk.right).astype(np.intp)
        inside = (rows >= 0) & (rows < self._shape[0])
        inside &= (columns >= 0) & (columns < self._shape[1])
        return np.where(inside, self._own[rows * inside, columns * inside], _UNKNOWN)
