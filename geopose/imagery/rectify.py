"""Puts leaning surfaces on their footprints, in the frame of the image.

In: heights above ground of what each pixel shows, and the image's flow. Out: heights and colours of
what stands on each pixel's ground, and where that cannot be known. A surface of height h moves by
its flow, h k pixels; the tallest wins; ground behind a building is no-data, not a second roof.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.imagery.cells import (
    HIDDEN,
    MARGIN_PX,
    SEEN,
    UNKNOWN,
    Block,
    occlusion_of,
    passes,
    rectify_block,
)
from geopose.imagery.lean import Lean
from geopose.imagery.place.field import FlowField

__all__ = ["HIDDEN", "SEEN", "UNKNOWN", "Rectified", "Window", "rectify", "rectify_windows"]

Window = tuple[slice, slice]  # rows, columns
_TILE_PX = 512
_FILE_TILE_PX = 2048
# With a field, a window has the flow of its middle. What that misses in its corners at the tallest
# height: well below the rounding to whole pixels. A field of noise does not make windows smaller
# than the other number, for each reads what can reach it.
_FIELD_MISS_PX = 0.25
_FIELD_TILE_PX = 64


@dataclass(frozen=True)
class Rectified:
    """What stands on the ground of each pixel.

    Attributes:
        agl_m: H x W float32 metres, NaN where it is hidden or unknown.
        rgb: H x W x 3 uint8, or None; 0 where `occlusion` is not 0, which is not what makes a
            pixel no-data: `occlusion` is.
        occlusion: H x W uint8. 0: seen. 1: hidden, something taller covers this ground in the
            image. 255: unknown, the image has no height there, or what covers the ground is a
            wall whose roof is beyond the border, or leads to no-data.
    """

    agl_m: NDArray[np.float32]
    rgb: NDArray[np.uint8] | None
    occlusion: NDArray[np.uint8]


class Windows(Protocol):
    """An array of which parts are read: an array in memory, or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width), or (height, width, 3)."""

    def __getitem__(self, window: Window, /) -> NDArray:
        """Some rows and columns."""


def rectify(
    agl_m: NDArray[np.floating],
    scale_px_per_m: float,
    angle_rad: float,
    rgb: NDArray[np.uint8] | None = None,
) -> Rectified:
    """Moves every surface to its footprint.

    Args:
        agl_m: H x W heights in metres of the surface seen in each pixel, NaN = unknown; any size.
        scale_px_per_m: flow in pixels per metre of height, 0 or more.
        angle_rad: direction of the flow, from where a surface is seen to its ground point.
        rgb: H x W x 3 uint8 of the same size.

    Returns:
        Arrays of the same size. A height is that of a pixel that landed there, or, in a crack of a
        stretched surface, between those of two neighbouring pixels of this surface.

    Raises:
        InputError: heights that are infinite, sizes that differ, a flow that is not finite.
    """
    result = Rectified(
        np.empty(agl_m.shape, np.float32),
        None if rgb is None else np.empty(rgb.shape, np.uint8),
        np.empty(agl_m.shape, np.uint8),
    )
    for window, part in rectify_windows(agl_m, scale_px_per_m, angle_rad, rgb, _TILE_PX):
        result.agl_m[window], result.occlusion[window] = part.agl_m, part.occlusion
        if result.rgb is not None and part.rgb is not None:
            result.rgb[window] = part.rgb
    return result


def rectify_windows(
    heights: Windows,
    scale_px_per_m: float,
    angle_rad: float,
    rgb: Windows | None = None,
    tile_px: int = _FILE_TILE_PX,
    field: FlowField | None = None,
) -> Iterator[tuple[Window, Rectified]]:
    """The same for an image of any size in bounded memory, window by window.

    The heights are read once to find the tallest, which decides how much of the image around a
    window can reach it, and then window by window. The windows together are what `rectify` gives
    for the whole image, bit for bit, whatever their size.

    Args:
        heights: as `agl_m` of `rectify`; parts of it are read.
        scale_px_per_m: as there.
        angle_rad: as there.
        rgb: as there; parts of it are read.
        tile_px: rows and columns of a window.
        field: flow by place, of an image over which one vector does not do. Each window goes by
            the flow of its middle, and windows are so small (down to 64) that this misses the
            flow of any place in it by a quarter of a pixel at most. Where the field is unknown,
            scale and angle hold.

    Yields:
        A window of the result and what belongs there; windows cover the image row by row.

    Raises:
        InputError: as there.
    """
    lean = _checked(heights, scale_px_per_m, angle_rad, rgb)
    height, width = heights.shape[:2]
    range_m = _range(heights, tile_px)
    if field is not None:
        field = field.known(np.array([lean.right, lean.down], np.float64))
        steady_px = field.steady_px(max(map(abs, range_m)), _FIELD_MISS_PX)
        tile_px = int(min(tile_px, max(steady_px, _FIELD_TILE_PX)))
    for rows in _spans(height, tile_px):
        for columns in _spans(width, tile_px):
            here = lean if field is None else _lean_of(field, rows, columns)
            yield (rows, columns), _window(heights, rgb, here, range_m, (rows, columns))


def _lean_of(field: FlowField, rows: slice, columns: slice) -> Lean:
    """Of a window: that of its middle."""
    middle = [(span.start + span.stop - 1) / 2 for span in (columns, rows)]
    right, down = field.at(*middle)
    return Lean(np.float32(right), np.float32(down))


def _checked(
    heights: Windows, scale_px_per_m: float, angle_rad: float, rgb: Windows | None
) -> Lean:
    if len(heights.shape) != 2 or 0 in heights.shape:
        raise InputError(f"heights of shape {tuple(heights.shape)}, expected rows x columns")
    if rgb is not None and tuple(rgb.shape) != (*heights.shape, 3):
        raise InputError(
            f"the image has shape {tuple(rgb.shape)}, the heights {tuple(heights.shape)}; "
            "both must be of one size, the image with three channels"
        )
    if not (np.isfinite(scale_px_per_m) and np.isfinite(angle_rad)) or scale_px_per_m < 0:
        raise InputError(
            f"flow of scale {scale_px_per_m} px/m, angle {angle_rad}: expected finite numbers, "
            "the scale 0 or more"
        )
    return Lean.of(scale_px_per_m, angle_rad)


def _spans(length: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]


def _range(heights: Windows, tile_px: int) -> tuple[float, float]:
    """The lowest and the highest height; 0 and 0 where none is known."""
    lowest, highest = np.inf, -np.inf
    for rows in _spans(heights.shape[0], tile_px):
        for columns in _spans(heights.shape[1], tile_px):
            part = np.asarray(heights[rows, columns])
            lowest = min(lowest, float(np.fmin.reduce(part, axis=None)))
            highest = max(highest, float(np.fmax.reduce(part, axis=None)))
    if np.isinf(lowest) and np.isinf(highest) and lowest > highest:
        return 0.0, 0.0
    if np.isinf(lowest) or np.isinf(highest):
        raise InputError("heights are infinite somewhere; use NaN where there is none")
    return lowest, highest


def _window(
    heights: Windows,
    rgb: Windows | None,
    lean: Lean,
    range_m: tuple[float, float],
    window: Window,
) -> Rectified:
    """One window of the result, from the part of the image that can reach it."""
    margin, sizes = passes(lean), heights.shape
    region = [_grown(span, margin, margin, n) for span, n in zip(window, sizes, strict=True)]
    part = tuple(
        _grown(span, most + MARGIN_PX, MARGIN_PX - fewest, n)
        for span, (fewest, most), n in zip(region, lean.reach(*range_m), sizes, strict=True)
    )
    block = Block(
        np.ascontiguousarray(heights[part[0], part[1]], np.float32),
        region[0].start - part[0].start,
        region[1].start - part[1].start,
        (region[0].stop - region[0].start, region[1].stop - region[1].start),
        lean,
        lean.column_length(range_m[1]),
    )
    agl_m, source = rectify_block(block, rgb is not None)
    occlusion = occlusion_of(block, agl_m)
    inner = tuple(
        slice(span.start - around.start, span.stop - around.start)
        for span, around in zip(window, region, strict=True)
    )
    agl_m, occlusion = agl_m[inner], occlusion[inner]
    if rgb is None or source is None:
        return Rectified(agl_m, None, occlusion)
    pixels = np.ascontiguousarray(rgb[part[0], part[1]]).reshape(-1, 3)
    moved = pixels.take(source[inner], axis=0)
    moved[occlusion != SEEN] = 0
    return Rectified(agl_m, moved, occlusion)


def _grown(span: slice, before: int, after: int, length: int) -> slice:
    return slice(max(span.start - before, 0), min(span.stop + after, length))
