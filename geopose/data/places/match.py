"""How alike two grids of heights are, over all shifts: masked concordance by Fourier transforms.

Concordance is correlation that also asks for equal heights, 2 cov / (var + var + (mean - mean)^2):
1 where the grids agree in every cell that both know, 0 where they have nothing in common. Streets
of equal spacing correlate; they rarely carry the same heights.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from geopose.data.places.grid import Grid

_FLAT = 0.02  # variance of log heights below which a part is bare ground, alike everywhere


@dataclass(frozen=True)
class Waves:
    """Transforms of a grid's known cells, heights and squared heights."""

    known: NDArray[np.complex64]
    heights: NDArray[np.complex64]
    squares: NDArray[np.complex64]
    cells: float  # that are known


def room_for(side: int, other: int) -> int:
    """The side of transforms in which no shift of two such grids wraps around."""
    return fft.next_fast_len(side + other, real=True)


def waves_of(grid: Grid, side: int) -> Waves:
    """Transforms on a square of `side` cells; the same side for all that are compared."""
    heights = grid.heights

    def wave(part: NDArray[np.float32]) -> NDArray[np.complex64]:
        return fft.rfft2(part, (side, side))

    count = float(grid.known.sum())
    return Waves(wave(grid.known), wave(heights), wave(heights * heights), count)


def likeness(one: Waves, two: Waves, side: int, overlap: float) -> float:
    """The largest concordance over all shifts.

    Args:
        one: transforms of a grid.
        two: those of another.
        side: of the transforms.
        overlap: share of the smaller grid's known cells that both must know.

    Returns:
        -1..1; -1 if there is no shift with that overlap, or nothing but bare ground in it.
    """

    def shifted(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> NDArray[np.float32]:
        return fft.irfft2(a * b.conj(), (side, side))

    cells = shifted(one.known, two.known)
    enough = cells >= max(overlap * min(one.cells, two.cells), 1.0)
    if not enough.any():
        return -1.0
    count = np.maximum(cells[enough], 1.0)

    def mean(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> NDArray[np.float32]:
        return shifted(a, b)[enough] / count

    first, second = mean(one.heights, two.known), mean(one.known, two.heights)
    spread_one = mean(one.squares, two.known) - first * first
    spread_two = mean(one.known, two.squares) - second * second
    common = mean(one.heights, two.heights) - first * second
    total = spread_one + spread_two + (first - second) ** 2
    built = (spread_one > _FLAT) & (spread_two > _FLAT)
    return float((2 * common[built] / total[built]).max(initial=-1.0))
