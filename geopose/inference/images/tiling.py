"""Overlapping tiles of an image, and how much each of them counts where they overlap.

In: the image's size. Out: windows that cover it to the last row and column, and weights that add up
to 1 at every pixel: near its border a tile counts less, as the network sees less around it there,
but nowhere nothing, and at the image's own border as much as inside.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis, evenly spread, all of one length.

    Attributes:
        length: of the image, pixels.
        tile: of each tile; `length` if there is one.
        starts: where they begin, ascending.
    """

    length: int
    tile: int
    starts: tuple[int, ...]

    @staticmethod
    def of(length: int, tile: int, overlap: int) -> "Axis":
        """The fewest tiles of a length that overlap by at least so much.

        Args:
            length: 1 or more.
            tile: longer than `overlap`.
            overlap: pixels.
        """
        if length <= tile:
            return Axis(length, length, (0,))
        count = -(-(length - overlap) // (tile - overlap))
        starts = np.rint(np.linspace(0, length - tile, count)).astype(int)
        return Axis(length, tile, tuple(int(start) for start in starts))

    @property
    def spans(self) -> tuple[slice, ...]:
        """Pixels of each tile."""
        return tuple(slice(start, start + self.tile) for start in self.starts)

    @cached_property
    def weights(self) -> tuple[NDArray[np.float32], ...]:
        """Of each tile's pixels; those of one pixel in all tiles add up to 1."""
        ramps = [self._ramp(number) for number in range(len(self.starts))]
        total = np.zeros(self.length)
        for span, ramp in zip(self.spans, ramps, strict=True):
            total[span] += ramp
        return tuple(
            (ramp / total[span]).astype(np.float32)
            for span, ramp in zip(self.spans, ramps, strict=True)
        )

    def _ramp(self, number: int) -> NDArray[np.float64]:
        """1 inside, falling smoothly to nearly 0 at borders that another tile lies across.

        A raised cosine: it neither jumps nor bends, so tiles that differ meet without an edge.
        """
        at = np.arange(self.tile) + 0.5
        ramp = np.ones(self.tile)
        if number > 0:
            shared = self.starts[number - 1] + self.tile - self.starts[number]
            ramp = np.minimum(ramp, at / shared)
        if number < len(self.starts) - 1:
            shared = self.starts[number] + self.tile - self.starts[number + 1]
            ramp = np.minimum(ramp, (self.tile - at) / shared)
        return np.sin(0.5 * np.pi * ramp) ** 2


@dataclass(frozen=True)
class Tiling:
    """Tiles of an image, row by row.

    Attributes:
        rows: along the height.
        columns: along the width.
    """

    rows: Axis
    columns: Axis

    @staticmethod
    def of(shape: tuple[int, int], tile: int, overlap: int) -> "Tiling":
        """Square tiles of an image of (height, width)."""
        return Tiling(Axis.of(shape[0], tile, overlap), Axis.of(shape[1], tile, overlap))

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def window(self, number: int) -> Window:
        """Pixels of a tile."""
        row, column = divmod(number, len(self.columns.starts))
        return self.rows.spans[row], self.columns.spans[column]

    def weights(self, number: int) -> NDArray[np.float32]:
        """H x W of a tile."""
        row, column = divmod(number, len(self.columns.starts))
        return self.rows.weights[row][:, None] * self.columns.weights[column][None, :]

    def centre(self, number: int) -> tuple[float, float]:
        """(row, column) of a tile's middle, 0 = centre of the first pixel."""
        rows, columns = self.window(number)
        return (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2
