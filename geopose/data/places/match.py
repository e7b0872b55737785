"""How alike two grids of heights are, over all shifts: masked concordance by Fourier transforms.

Concordance is correlation that also asks for equal heights, 2 cov / (var + var + (mean - mean)^2):
1 where the grids agree in every cell that both know, 0 where they have nothing in common. Streets
of equal spacing correlate; they rarely carry the same heights.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from geopose.data.places.grid import Grid

_BUILT_M = 2.0
_EQUAL_M, _EQUAL_SHARE = 1.0, 0.1
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


class Match(NamedTuple):
    """The best shift of two grids."""

    likeness: float  # concordance there, -1..1
    shift: tuple[int, int]  # rows, columns by which the second one must move
    cells: float  # that both know there


NO_MATCH = Match(-1.0, (0, 0), 0.0)


def best_match(one: Waves, two: Waves, side: int, overlap: float) -> Match:
    """The shift with the largest concordance.

    Args:
        one: transforms of a grid.
        two: those of another.
        side: of the transforms.
        overlap: share of the smaller grid's known cells that both must know.

    Returns:
        The match; NO_MATCH if no shift has that overlap and more than bare ground in it.
    """

    def shifted(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> NDArray[np.float32]:
        return fft.irfft2(a * b.conj(), (side, side))

    cells = shifted(one.known, two.known)
    places = np.flatnonzero(cells >= max(overlap * min(one.cells, two.cells), 1.0))
    count = np.maximum(cells.flat[places], 1.0)

    def mean(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> NDArray[np.float32]:
        return (shifted(a, b).flat[places] / count).astype(np.float32)

    first, second = mean(one.heights, two.known), mean(one.known, two.heights)
    spread_one = mean(one.squares, two.known) - first * first
    spread_two = mean(one.known, two.squares) - second * second
    common = mean(one.heights, two.heights) - first * second
    built = (spread_one > _FLAT) & (spread_two > _FLAT)
    if not built.any():
        return NO_MATCH
    total = spread_one + spread_two + (first - second) ** 2
    found = np.where(built, 2 * common / np.maximum(total, _FLAT), -1.0)
    best = int(found.argmax())
    row, column = divmod(int(places[best]), side)
    back = side // 2  # a shift beyond it is a negative one
    shift = row - side * (row > back), column - side * (column > back)
    return Match(float(found[best]), shift, float(count[best]))


def agreement(one: Grid, two: Grid, shift: tuple[int, int]) -> float:
    """Share of the built cells that both know whose heights are equal, within 1 m or a tenth.

    Large flat roofs of different places lie well on each other; their heights differ.

    Args:
        one: a grid.
        two: another; its first cell lies on cell `shift` of the first one.
        shift: rows, columns.
    """
    windows = [
        (slice(max(0, move), min(a, b + move)), slice(max(0, -move), min(b, a - move)))
        for a, b, move in zip(one.heights.shape, two.heights.shape, shift, strict=True)
    ]
    here, there = (tuple(window[part] for window in windows) for part in (0, 1))
    known = (one.known[here] > 0) & (two.known[there] > 0)
    a, b = np.expm1(one.heights[here][known]), np.expm1(two.heights[there][known])
    tall = np.maximum(a, b)
    built = tall > _BUILT_M
    if not built.any():
        return 0.0
    near = np.abs(a - b) <= np.maximum(_EQUAL_M, _EQUAL_SHARE * tall)
    return float(near[built].mean())
