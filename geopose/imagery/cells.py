"""Rectifies one block of an image: surfaces land, cracks are closed, the rest is told apart.

In: the part of the image that can reach a region of the result. Out: that region. Three things
happen, in this order.

1. Every pixel lands in the cell of its ground point; the tallest wins. Pixels of a facade, all of
   which land on the building's edge, take only cells in which nothing else landed; pixels in the
   middle of a blurred jump from ground to roof land nowhere.
2. Cracks are closed. Walking down the column over an empty cell, either the surface in the image
   is met between two neighbouring pixels of one surface, one seen to be below the column's point
   and the other above it: then that is what stands in the cell, and its height is between theirs.
   Or the point disappears behind something taller from one pixel to the next: then the cell is
   hidden, and stays empty.
3. Empty cells are hidden if the surface that covers their ground in the image ends before the
   image and its data do; otherwise nobody knows.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.imagery.lean import Lean

SEEN, HIDDEN, UNKNOWN = 0, 1, 255
# Neighbouring pixels of one surface: a roof of 60 degrees rises by 0.9 m over two pixels of 0.25 m.
SAME_SURFACE_M = 2.0
_WALL_SHARE = 0.5  # of the fall of an upright wall, from pixel to pixel
_EDGE_SHARE = 0.1
_SAMPLES = np.arange(-2, 4, dtype=np.int32)  # steps around a guess in which a surface is met
_EMPTY = np.finfo(np.float32).min  # below every height, and finite as OpenCV's borders are
_NEIGHBOURS = np.ones((3, 3), np.uint8)
_PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (rows, columns) to one of two opposite neighbours
MARGIN_PX = 6  # of the image around what reaches a region, for neighbours and samples


@dataclass(frozen=True)
class Block:
    """A part of an image and the region of the result to make of it.

    Attributes:
        agl_m: h x w float32 heights of the part, NaN = unknown.
        row, column: of the region's first cell, counted from the part's first pixel.
        shape: (height, width) of the region.
        lean: of the image.
        longest: steps up a column that can show anything, the same for all blocks of an image.
    """

    agl_m: NDArray[np.float32]
    row: int
    column: int
    shape: tuple[int, int]
    lean: Lean
    longest: int

    def inside(self, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which pixels belong to the part."""
        height, width = self.agl_m.shape
        return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)

    def sample(
        self, rows: NDArray[np.int32], columns: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(heights, positions in the flattened part) of pixels; NaN outside the part."""
        inside = self.inside(rows, columns)
        position = np.where(inside, rows * self.agl_m.shape[1] + columns, 0)
        return np.where(inside, self.agl_m.reshape(-1)[position], np.float32(np.nan)), position


def passes(lean: Lean) -> int:
    """How many rounds close the widest crack of one surface; each closes a cell from both sides."""
    return min(max(int(np.ceil(SAME_SURFACE_M * lean.px_per_m / 2)), 1), 16)


def rectify_block(
    block: Block, with_source: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
    """Heights of a block's region, NaN where nothing is seen, and which pixel is in each cell.

    Args:
        block: holds at least what the region's cells and the `passes` cells around them can show.
        with_source: whether to say where the cells come from.

    Returns:
        float32 heights, and int32 positions in the flattened part (any in empty cells) or None.
    """
    top = _land(block)
    source = _sources(block, top) if with_source else None
    near: NDArray[np.bool_] | None = None
    for _ in range(passes(block.lean) if block.lean.px_per_m > 0 else 0):
        near = _close(block, top, source, near)
    top[top == _EMPTY] = np.nan
    return top, source


def _land(block: Block) -> NDArray[np.float32]:
    """The tallest height that lands in each cell, minus infinity where none does."""
    height, width = block.shape
    rows, columns = block.lean.shift(block.agl_m)
    rows += np.arange(-block.row, block.agl_m.shape[0] - block.row, dtype=np.int32)[:, None]
    columns += np.arange(-block.column, block.agl_m.shape[1] - block.column, dtype=np.int32)
    # As unsigned numbers, negative ones are beyond every width.
    inside = (rows.view(np.uint32) < height) & (columns.view(np.uint32) < width)
    cells = rows * np.int32(width) + columns
    nowhere = np.int32(height * width)
    wall, blurred = _slopes(block)
    inside &= ~blurred
    wall &= inside
    top = np.full(height * width + 1, _EMPTY)  # the last one takes what is not to land
    solid = np.where(inside & ~wall, cells, nowhere)
    with np.errstate(invalid="ignore"):  # NaN lands nowhere
        np.maximum.at(top, solid.reshape(-1), block.agl_m.reshape(-1))
    cells, heights = cells[wall], block.agl_m[wall]
    free = top[cells] == _EMPTY
    np.maximum.at(top, cells[free], heights[free])
    return top[:-1].reshape(height, width)


def _slopes(block: Block) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of facades, and pixels in the middle of a jump, which belong to no surface.

    Along the flow a facade falls about as an upright wall does; its first pixel, which has the
    roof's edge behind it, falls towards the next one. Where a building's far edge is blurred, as
    predictions are, heights between ground and roof rise along the flow by more than one surface
    does, on both sides of a pixel. They would land one by one on the hidden ground.
    """
    lean = block.lean
    if lean.px_per_m == 0.0:
        return np.zeros(block.agl_m.shape, bool), np.zeros(block.agl_m.shape, bool)
    height, width = block.agl_m.shape
    padded = np.full((height + 2, width + 2), np.nan, np.float32)
    padded[1:-1, 1:-1] = block.agl_m
    (row,), (column,) = lean.steps(np.ones(1, np.int32))
    behind = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
    ahead = padded[1 - row : 1 - row + height, 1 - column : 1 - column + width]
    wall_m = np.float32(1.0 / lean.px_per_m)
    fall = behind - block.agl_m
    walls = fall >= _WALL_SHARE * wall_m
    drop = block.agl_m - ahead
    walls |= (drop >= _WALL_SHARE * wall_m) & (fall >= _EDGE_SHARE * wall_m)
    jump = -max(np.float32(SAME_SURFACE_M), wall_m)
    return walls, (fall < jump) & (drop < jump)


def _sources(block: Block, top: NDArray[np.float32]) -> NDArray[np.int32]:
    """Where landed heights come from: back along their own shift, for equal ones never meet."""
    rows, columns = block.lean.shift(np.where(top == _EMPTY, np.float32(0), top))  # 0: stays inside
    rows = np.arange(block.row, block.row + block.shape[0], dtype=np.int32)[:, None] - rows
    columns = np.arange(block.column, block.column + block.shape[1], dtype=np.int32) - columns
    return rows * np.int32(block.agl_m.shape[1]) + columns


def _close(
    block: Block,
    top: NDArray[np.float32],
    source: NDArray[np.int32] | None,
    near: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """Closes cracks next to filled cells, in place.

    Args:
        block: the part and the region.
        top: the region so far.
        source: where its cells come from.
        near: cells that have got a new neighbour in the round before; None in the first round.

    Returns:
        The same for the next round.
    """
    highest = np.asarray(cv2.dilate(top, _NEIGHBOURS), np.float32)
    empty = top == _EMPTY
    lowest = np.asarray(cv2.erode(np.where(empty, -_EMPTY, top), _NEIGHBOURS), np.float32)
    holes = empty & (highest > _EMPTY)
    found: list[tuple[NDArray, NDArray, NDArray]] = []
    if near is None:
        dips, between = _dips(top, highest)
        heights, pixels = _meet(block, dips, between)
        met = heights > top.reshape(-1)[dips] + np.float32(SAME_SURFACE_M)
        found.append((dips[met], heights[met], pixels[met]))
    else:
        holes &= near
    rest = np.flatnonzero(holes).astype(np.int32)
    for guess in (highest, lowest):
        heights, pixels = _meet(block, rest, guess.reshape(-1)[rest])
        met = ~np.isnan(heights)
        found.append((rest[met], heights[met], pixels[met]))
        rest = rest[~met]
        both = highest.reshape(-1)[rest] - lowest.reshape(-1)[rest]
        rest = rest[both > SAME_SURFACE_M]  # otherwise one guess is as good as the other
    new = np.zeros(top.shape, np.uint8)
    for cells, heights, pixels in found:
        top.reshape(-1)[cells] = heights
        new.reshape(-1)[cells] = 1
        if source is not None:
            source.reshape(-1)[cells] = pixels
    return cv2.dilate(new, _NEIGHBOURS).view(bool)


def _dips(
    top: NDArray[np.float32], highest: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Cells through which something lower shows between two opposite taller neighbours.

    Returns:
        (positions in the flattened region, the lower one of the neighbours).
    """
    width = top.shape[1]
    step = np.float32(SAME_SURFACE_M)
    inner = np.zeros(top.shape, bool)
    inner[1:-1, 1:-1] = True
    cells = np.flatnonzero(inner & (top > _EMPTY) & (highest > top + step)).astype(np.int32)
    flat = top.reshape(-1)
    between = np.full(len(cells), _EMPTY)
    for row, column in _PAIRS:
        offset = row * width + column
        np.maximum(between, np.minimum(flat[cells - offset], flat[cells + offset]), out=between)
    dip = between > flat[cells] + step
    return cells[dip], between[dip]


def _meet(
    block: Block, cells: NDArray[np.int32], guess_m: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The surface that stands in a cell, met between two neighbouring pixels of its column.

    Args:
        block: the part and the region.
        cells: positions in the flattened region.
        guess_m: about where on the column to look.

    Returns:
        (heights, NaN where no surface is met, the nearer pixel in the flattened part).
    """
    rows, columns = cells // block.shape[1] + block.row, cells % block.shape[1] + block.column
    px_per_m = np.float32(block.lean.px_per_m)
    first = np.floor(guess_m * px_per_m).astype(np.int32)
    heights = np.full(len(cells), np.nan, np.float32)
    pixels = np.zeros(len(cells), np.int32)
    above = seen = None
    for step in first + _SAMPLES[::-1, None]:
        down, right = block.lean.steps(step)
        agl_m, position = block.sample(rows + down, columns + right)
        over = agl_m - step / px_per_m  # of the surface over the column's point
        if above is not None and seen is not None:
            one_surface = np.abs(agl_m - seen[0]) <= SAME_SURFACE_M
            met = np.isnan(heights) & (above < 0) & (over >= 0) & one_surface
            share = over[met] / (over[met] - above[met])
            heights[met] = agl_m[met] + share * (seen[0][met] - agl_m[met])
            pixels[met] = np.where(share < 0.5, position[met], seen[1][met])
        above, seen = over, (agl_m, position)
    return heights, pixels


def occlusion_of(block: Block, agl_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Which cells of a finished region are seen, which hidden, and of which nobody knows.

    The ground of an empty cell is covered in the image by something taller: it is hidden. Unless
    the column leads up a wall to the border of the image, for then the wall's own roof, which is
    not seen, may stand there; or it comes to no-data before it comes to a free view.

    Args:
        block: the part and the region.
        agl_m: the region's heights, NaN where nothing is seen.

    Returns:
        uint8: 0 seen, 1 hidden, 255 unknown.
    """
    flat = np.full(agl_m.size, SEEN, np.uint8)
    cells = np.flatnonzero(np.isnan(agl_m)).astype(np.int32)
    rows, columns = cells // block.shape[1] + block.row, cells % block.shape[1] + block.column
    ground, _ = block.sample(rows, columns)
    flat[cells] = np.where(np.isnan(ground), UNKNOWN, HIDDEN)
    doubtful = (ground > 0) & _may_end(block, rows, columns)
    cells, rows, columns = cells[doubtful], rows[doubtful], columns[doubtful]
    cover = ground[doubtful]
    wall = np.zeros(len(cells), bool)
    for step in range(1, block.longest + 1):
        if len(cells) == 0:
            break
        down, right = block.lean.steps(np.full(1, step, np.int32))
        over, _ = block.sample(rows + down, columns + right)
        ends = np.isnan(over)
        flat[cells[ends & (wall | block.inside(rows + down, columns + right))]] = UNKNOWN
        wall = over - cover >= np.float32(_WALL_SHARE / block.lean.px_per_m)
        covered = over >= np.float32(step / block.lean.px_per_m)
        cells, rows, columns = cells[covered], rows[covered], columns[covered]
        cover, wall = over[covered], wall[covered]
    return flat.reshape(agl_m.shape)


def _may_end(
    block: Block, rows: NDArray[np.int32], columns: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Cells on whose columns the image or its data may end: few, so only these are walked."""
    height, width = block.agl_m.shape
    (down,), (right,) = block.lean.steps(np.full(1, block.longest, np.int32))
    far_rows, far_columns = rows + down, columns + right
    leaves = (far_rows < 0) | (far_rows >= height) | (far_columns < 0) | (far_columns >= width)
    gaps = np.isnan(block.agl_m)
    if not gaps.any():
        return leaves
    count = cv2.integral(gaps.view(np.uint8))
    top, bottom = np.minimum(rows, far_rows), np.maximum(rows, far_rows) + 1
    left, right_end = np.minimum(columns, far_columns), np.maximum(columns, far_columns) + 1
    for edge, last in ((top, height), (bottom, height), (left, width), (right_end, width)):
        np.clip(edge, 0, last, out=edge)
    total = count[bottom, right_end] + count[top, left]
    return leaves | (total > count[top, right_end] + count[bottom, left])
