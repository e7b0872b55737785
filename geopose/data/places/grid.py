"""Heights of an image on the ground beneath: the same place gives the same grid from everywhere.

In: heights as the image shows them, and its flow. Out: a coarse grid of what stands on each cell,
in metres of the ground and not in pixels, so that views of different lean and gsd can be compared.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import read_agl_m
from geopose.data.layout import ImageRecord
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.geometry import angle_to_vector

_ROWS = 512  # of the image, worked on at once


@dataclass(frozen=True)
class Grid:
    """Heights of cells: log(1 + metres), so that a tower does not outweigh all else.

    Attributes:
        heights: rows x columns float32; 0 where unknown.
        known: rows x columns float32, 1 or 0.
    """

    heights: NDArray[np.float32]
    known: NDArray[np.float32]

    def turned(self, degrees: float) -> "Grid":
        """Turned about its middle, on a square that holds it in every direction."""
        rows, columns = self.heights.shape
        side = math.ceil(math.hypot(rows, columns))
        turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
        turn[:, 2] += (side - columns) / 2, (side - rows) / 2
        heights, share = (
            cv2.warpAffine(part, turn, (side, side)) for part in (self.heights, self.known)
        )
        known = share > 0.5
        return Grid(
            np.where(known, heights / np.maximum(share, 0.5), 0).astype(np.float32),
            known.astype(np.float32),
        )

    def coarser(self, factor: int) -> "Grid":
        """Means of factor x factor cells; a cell is known if a quarter of it is."""
        rows, columns = (-(-side // factor) for side in self.heights.shape)
        room = [(0, rows * factor - self.heights.shape[0])]
        room.append((0, columns * factor - self.heights.shape[1]))

        def total(part: NDArray[np.float32]) -> NDArray[np.float32]:
            blocks = np.pad(part, room).reshape(rows, factor, columns, factor)
            return blocks.sum(axis=(1, 3), dtype=np.float32)

        count = total(self.known)
        known = count >= factor * factor / 4
        heights = np.where(known, total(self.heights) / np.maximum(count, 1), 0)
        return Grid(heights.astype(np.float32), known.astype(np.float32))


def ground_grid(record: ImageRecord, cell_m: float) -> Grid:
    """The tallest surface on every cell of the ground that an image shows.

    Args:
        record: an image with truth.
        cell_m: side of a cell.

    Raises:
        InputError: no truth, or a file that cannot be read.
    """
    agl, vflow = record.agl_file(), record.vflow
    if agl is None or vflow is None:
        raise InputError(f"{record.where}: there are no heights and flow to compare places by")
    agl_m, (scale, angle) = read_agl_m(agl), read_vflow(vflow)
    right, down = (float(part) for part in scale * angle_to_vector(angle))
    step = record.gsd_m / cell_m
    rows, columns = (math.ceil(side * step) for side in agl_m.shape)
    tallest = np.full((rows, columns), -1.0, np.float32)
    for top in range(0, agl_m.shape[0], _ROWS):
        part = agl_m[top : top + _ROWS]
        y, x = np.nonzero(np.isfinite(part))
        height = part[y, x]
        column = ((x + right * height) * step).astype(np.int64)
        row = ((top + y + down * height) * step).astype(np.int64)
        inside = (column >= 0) & (row >= 0) & (column < columns) & (row < rows)
        np.maximum.at(tallest, (row[inside], column[inside]), height[inside])
    known = tallest >= 0
    return Grid(
        np.where(known, np.log1p(np.maximum(tallest, 0)), 0).astype(np.float32),
        known.astype(np.float32),
    )
