"""Crops, symmetries, zoom, rotation and halving as one exact pixel map.

In: an image with heights, gsd, scale and angle. Out: the same after one map
`out - out_centre = linear (in - in_centre)`. Symmetries and crops at full resolution copy pixels;
everything else is one warp, whose cost follows the crop and not the image. Only the Jacobian
`linear` decides what happens to gsd, scale and angle (`geopose.geometry`). Before all that, in the
window of the (shrunk) image that a crop needs, heights may be changed (`height_warp`).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.augment.height import shrink_heights, warp_heights
from geopose.augment.height_warp import margins, warp_height
from geopose.errors import InputError
from geopose.geometry import SYMMETRIES, SYMMETRY, Symmetry, transform_gsd, transform_scale_angle

_MARGIN_PX = 2  # bilinear interpolation reaches one pixel further than the crop


class Pixels(Protocol):
    """An array, or a file of which only the windows asked for are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, ...)."""

    def __getitem__(self, window: tuple[slice, slice], /) -> NDArray[Any]:
        """Some rows and columns."""


class Scene(NamedTuple):
    """What is cropped: as `Sample`, but the pixels may still be in a file."""

    image: Pixels  # H x W x 3 uint8, RGB
    agl_m: Pixels  # H x W float32 metres, NaN = unknown
    gsd_m: float
    scale_px_per_m: float
    angle_rad: float


class Sample(NamedTuple):
    """An image with everything that a spatial change of it must change too."""

    image: NDArray[np.uint8]  # H x W x 3, RGB
    agl_m: NDArray[np.float32]  # H x W metres, NaN = unknown
    gsd_m: float  # metres per pixel
    scale_px_per_m: float
    angle_rad: float


@dataclass(frozen=True)
class SpatialRange:
    """What a level may draw.

    `zoom` 0.1 = objects grow or shrink by up to 10 %; `sized_crop` 0.9 = the crop covers 0.9 to
    1 / 0.9 of its size in the image and is resized; `probability` is that of zooming, rotating and
    resizing at all: the rest of the samples stay free of interpolation.
    """

    symmetries: bool = False
    zoom: float = 0.0
    rotation_deg: float = 0.0
    sized_crop: float = 1.0
    probability: float = 0.0

    @property
    def gsd_factors(self) -> tuple[float, float]:
        """The least and the largest factor by which a draw changes an image's gsd."""
        if not self.probability:
            return 1.0, 1.0
        return self.sized_crop / (1 + self.zoom), 1 / (self.sized_crop * (1 - self.zoom))


@dataclass(frozen=True)
class PixelMap:
    """One draw: a symmetry, then zoom and rotation, of a window at a place in the image.

    `place_x` and `place_y` in [0, 1] say where the window lies between its two extremes.
    """

    symmetry: Symmetry = SYMMETRY["identity"]
    zoom: float = 1.0
    rotation_rad: float = 0.0
    place_x: float = 0.5
    place_y: float = 0.5

    @property
    def lossless(self) -> bool:
        """True when pixels are only moved."""
        return self.zoom == 1.0 and self.rotation_rad == 0.0

    @property
    def linear(self) -> NDArray[np.float64]:
        """2 x 2 Jacobian d(output pixel) / d(input pixel) in (x, y)."""
        if self.lossless:
            return self.symmetry.linear
        cos, sin = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        return self.zoom * np.array([[cos, -sin], [sin, cos]]) @ self.symmetry.linear


def draw_map(ranges: SpatialRange, rng: np.random.Generator) -> PixelMap:
    """Draws one map; always the same number of random values, so that draws stay comparable."""
    which = int(rng.integers(len(SYMMETRIES)))
    place_x, place_y, chance = (float(value) for value in rng.random(3))
    zoom_in, turn = (float(value) for value in rng.uniform(-1, 1, 2))
    covered = float(rng.uniform(ranges.sized_crop, 1 / ranges.sized_crop))
    symmetry = SYMMETRIES[which] if ranges.symmetries else SYMMETRY["identity"]
    if chance >= ranges.probability:
        return PixelMap(symmetry, place_x=place_x, place_y=place_y)
    return PixelMap(
        symmetry,
        zoom=(1 + ranges.zoom * zoom_in) / covered,
        rotation_rad=math.radians(ranges.rotation_deg * turn),
        place_x=place_x,
        place_y=place_y,
    )


def apply_map(
    scene: Scene | Sample,
    pixel_map: PixelMap,
    crop_size: int | None,
    downsample: int = 1,
    height_factor: float = 1.0,
) -> Sample:
    """Applies a map and cuts the crop.

    The same window of the image is asked for, and the same is done to it, whether the pixels are in
    memory or in a file: the outcome does not depend on where they are.

    Args:
        scene: the whole image.
        pixel_map: what to do.
        crop_size: side of the square that comes out; None = the whole image, turned about its
            centre. Where the crop reaches beyond the image, pixels are mirrored (without repeating
            the edge) and heights are NaN: a mirrored building would lean the wrong way.
        downsample: the image is first shrunk by this whole number, by area.
        height_factor: then everything in it is made so many times as tall (`warp_height`).
    """
    source = _Source(scene, downsample, height_factor)
    symmetry = pixel_map.symmetry
    if crop_size is None:
        size = source.size[::-1] if symmetry.transpose else source.size
    else:
        size = (crop_size, crop_size)
    window = size[::-1] if symmetry.transpose else size  # its size in the image, before zooming
    if pixel_map.lossless:
        top = _integer_place(source.size[0], window[0], pixel_map.place_y)
        left = _integer_place(source.size[1], window[1], pixel_map.place_x)
        image, agl_m = (_moved(part, symmetry) for part in source.window(top, left, *window))
    else:
        image, agl_m = _warp(source, pixel_map, window, size)
    return _move_labels(Sample(image, agl_m, *scene[2:]), pixel_map.linear / downsample)


def _moved(array: NDArray, symmetry: Symmetry) -> NDArray:
    """A contiguous `symmetry.apply_numpy(array)`; OpenCV takes a fifth of the time that numpy takes
    to copy a view with three channels."""
    if symmetry.transpose:
        array = cv2.transpose(array)
    if symmetry.flip_x or symmetry.flip_y:
        both = symmetry.flip_x and symmetry.flip_y
        array = cv2.flip(array, -1 if both else int(symmetry.flip_x))
    return np.ascontiguousarray(array)


def _move_labels(sample: Sample, linear: NDArray[np.float64]) -> Sample:
    if np.array_equal(linear, np.eye(2)):
        return sample
    scale_px_per_m, angle_rad = transform_scale_angle(
        sample.scale_px_per_m, sample.angle_rad, linear
    )
    return sample._replace(
        gsd_m=transform_gsd(sample.gsd_m, linear),
        scale_px_per_m=scale_px_per_m,
        angle_rad=angle_rad,
    )


def _integer_place(length: int, window: int, place: float) -> int:
    """First pixel of a window; negative when the window is larger than the image."""
    low, high = sorted((0, length - window))
    return low + min(int(place * (high - low + 1)), high - low)


def _warp(
    source: "_Source", pixel_map: PixelMap, window: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Zooms and rotates by one interpolation, of only the part of the image that is needed."""
    to_input = np.linalg.inv(pixel_map.linear)
    centre_in = np.array(
        [
            _centre(source.size[1], window[1] / pixel_map.zoom, pixel_map.place_x),
            _centre(source.size[0], window[0] / pixel_map.zoom, pixel_map.place_y),
        ]
    )
    centre_out = (np.array(size[::-1]) - 1) / 2
    corners = np.array([[x, y] for x in (0, size[1] - 1) for y in (0, size[0] - 1)])
    reached = (corners - centre_out) @ to_input.T + centre_in
    left, top = np.maximum(np.floor(reached.min(axis=0)).astype(int) - _MARGIN_PX, 0)
    right, bottom = np.ceil(reached.max(axis=0)).astype(int) + _MARGIN_PX + 1
    right, bottom = min(right, source.size[1]), min(bottom, source.size[0])
    image, agl_m = source.window(top, left, bottom - top, right - left)
    offset = centre_in - np.array([left, top]) - to_input @ centre_out
    matrix = np.hstack([to_input, offset[:, None]])
    warped = cv2.warpAffine(
        image,
        matrix,
        (size[1], size[0]),
        # As albumentations does by default; cubic takes three times as long, half of a crop's cost.
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(warped, dtype=np.uint8), warp_heights(agl_m, matrix, size)


def _centre(length: int, window: float, place: float) -> float:
    """Pixel coordinate of a window's centre, uniform over the places where it fits."""
    low, high = sorted((0.0, length - window))
    return low + place * (high - low) + window / 2 - 0.5


class _Source:
    """The image that is cropped, shrunk and changed only where a window asks for it."""

    def __init__(self, scene: Scene | Sample, factor: int, height_factor: float = 1.0) -> None:
        self._scene = scene
        self._factor = factor
        self._height_factor = height_factor
        height, width = scene.image.shape[:2]
        self.size = (height // factor, width // factor)
        if min(self.size) < 1:
            raise InputError(
                f"an image of {width} x {height} pixels cannot be shrunk {factor} times"
            )

    def window(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pixels and heights of a window; mirrored and NaN where it leaves the image."""
        rows = slice(max(top, 0), min(top + height, self.size[0]))
        columns = slice(max(left, 0), min(left + width, self.size[1]))
        image, agl_m = self._warped(rows, columns)
        above, before = rows.start - top, columns.start - left
        below, after = height - above - image.shape[0], width - before - image.shape[1]
        if not any((above, below, before, after)):
            return image, agl_m
        pads = ((above, below), (before, after))
        mirrored = np.pad(image, (*pads, (0, 0)), mode="reflect")
        return mirrored, np.pad(agl_m, pads, constant_values=np.nan)

    def _warped(self, rows: slice, columns: slice) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pixels and heights with another height, of a window within the image."""
        if self._height_factor == 1.0:
            return self._shrunk(rows, columns)
        scale_px_per_m, angle_rad = self._scene.scale_px_per_m / self._factor, self._scene.angle_rad
        around = margins(scale_px_per_m, angle_rad, self._height_factor)
        part = [
            slice(max(span.start - before, 0), min(span.stop + after, length))
            for span, (before, after), length in zip(
                (rows, columns), around, self.size, strict=True
            )
        ]
        image, agl_m = self._shrunk(*part)
        image, agl_m = warp_height(image, agl_m, scale_px_per_m, angle_rad, self._height_factor)
        inner = tuple(
            slice(span.start - outer.start, span.stop - outer.start)
            for span, outer in zip((rows, columns), part, strict=True)
        )
        return np.ascontiguousarray(image[inner]), np.ascontiguousarray(agl_m[inner])

    def _shrunk(self, rows: slice, columns: slice) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        factor = self._factor
        rows = slice(rows.start * factor, rows.stop * factor)
        columns = slice(columns.start * factor, columns.stop * factor)
        image, agl_m = self._scene.image[rows, columns], self._scene.agl_m[rows, columns]
        if factor == 1:
            return image, agl_m
        size = (image.shape[1] // factor, image.shape[0] // factor)
        shrunk = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return shrunk, shrink_heights(agl_m, factor)
