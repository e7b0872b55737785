"""Rectified products of image files: heights, colours, occlusion, a window at a time.

In: a height map, the flow, and the image if there is one, of any size. Out: GeoTIFFs in the image's
frame that keep its place on the earth.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import NODATA_CM, metres
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.imagery.files.raster import Raster, RasterWriter, create_raster, open_raster
from geopose.imagery.place.georeference import Georeference
from geopose.imagery.rectify import SEEN, UNKNOWN, Rectified, Window, Windows, rectify_windows

AGL, RGB, OCCLUSION = "AGL_RECTIFIED", "RGB_RECTIFIED", "OCCLUSION"
_HIGHEST_M = 10_000.0  # nothing on the earth is taller; such values are not metres
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Products:
    """What was written for one image.

    Attributes:
        files: their paths.
        shares: how much of the image is seen, hidden, unknown.
    """

    files: tuple[Path, ...]
    shares: tuple[float, float, float]


class HeightWindows:
    """Heights of a file in metres, NaN = unknown: uint16 centimetres, or floating metres.

    Args:
        raster: open; 65535 is no-data in centimetres, NaN in metres, and what the file states.

    Raises:
        InputError: another kind of pixels; later, heights that cannot be metres.
    """

    def __init__(self, raster: Raster) -> None:
        if raster.count != 1 or raster.dtype.name not in ("uint16", *_FLOATS):
            raise InputError(
                f"{raster.path}: {raster.count} bands of {raster.dtype}; heights are one band, "
                "uint16 in cm or float32 in metres"
            )
        self._raster = raster
        self.shape = raster.shape

    def __getitem__(self, window: Window) -> NDArray[np.float32]:
        """Some rows and columns."""
        pixels = self._raster.read(*window)
        if pixels.dtype == np.uint16:
            agl_m = metres(np.where(self._raster.valid(*window), pixels, np.uint16(NODATA_CM)))
            return agl_m
        agl_m = np.where(self._raster.valid(*window), pixels, np.nan)
        wrong = np.abs(agl_m) > _HIGHEST_M
        if wrong.any():
            raise InputError(
                f"{self._raster.path}: a height of {agl_m[wrong][0]:g}; expected metres, and NaN "
                "or the file's no-data value where there is none"
            )
        return agl_m.astype(np.float32)


class _RgbWindows:
    """The pixels of an 8-bit RGB file."""

    def __init__(self, raster: Raster, shape: tuple[int, int], agl: Path) -> None:
        if raster.count != 3 or raster.dtype != np.uint8:
            raise InputError(
                f"{raster.path}: {raster.count} bands of {raster.dtype}; make it an 8-bit RGB "
                "image with three channels"
            )
        if raster.shape != shape:
            raise InputError(
                f"{raster.path}: {raster.width} x {raster.height} pixels, but {agl.name} has "
                f"{shape[1]} x {shape[0]}; they must be equal"
            )
        self._raster = raster
        self.shape = (*shape, 3)

    def __getitem__(self, window: Window) -> NDArray[np.uint8]:
        return self._raster.read(*window)


def stem_of(agl: Path) -> str:
    """What the products of a height map are called after: CITY_1_AGL.tif -> CITY_1."""
    return agl.stem.removesuffix("_AGL").removesuffix("_RGB")


def write_products(
    agl: Path,
    vflow: Path,
    rgb: Path | None,
    out: Path,
    progress: Callable[[float], object] | None = None,
) -> Products:
    """Rectifies one image into `<stem>_AGL_RECTIFIED.tif`, `_RGB_RECTIFIED.tif`, `_OCCLUSION.tif`.

    Args:
        agl: height map: uint16 in cm with 65535 as no-data, or floating metres.
        vflow: the image's flow, as the challenge stores it.
        rgb: the image, 8-bit RGB of the same size; None = no colours are written.
        out: folder, made if missing.
        progress: called after each window with the share of the image that it was.

    Raises:
        InputError: a file that is missing, broken, of another kind or size.
        RunError: a product cannot be written.
    """
    scale_px_per_m, angle_rad = read_vflow(vflow)
    with ExitStack() as stack:
        raster = stack.enter_context(open_raster(agl))
        heights, colours = HeightWindows(raster), None
        place = raster.georeference
        if rgb is not None:
            image = stack.enter_context(open_raster(rgb))
            colours = _RgbWindows(image, heights.shape, agl)
            place = place if place != Georeference() else image.georeference
        work = Rectification(
            heights, colours, scale_px_per_m, angle_rad, place, {"GEOPOSE_HEIGHTS": agl.name}
        )
        names = (AGL, OCCLUSION) if rgb is None else (AGL, RGB, OCCLUSION)

        def each(_window: Window, part: Rectified) -> None:
            if progress is not None:
                progress(part.occlusion.size / (heights.shape[0] * heights.shape[1]))

        return write_rectified(work, stem_of(agl), out, names, each)


@dataclass(frozen=True)
class Rectification:
    """What an image is rectified from.

    Attributes:
        heights: H x W metres, NaN = unknown.
        rgb: H x W x 3 uint8, or None.
        scale_px_per_m: of the flow.
        angle_rad: of the flow.
        place: where the image lies.
        tags: what else is to be known of the products.
    """

    heights: Windows
    rgb: Windows | None
    scale_px_per_m: float
    angle_rad: float
    place: Georeference
    tags: dict[str, str]


def write_rectified(
    work: Rectification,
    stem: str,
    out: Path,
    names: Sequence[str] = (AGL, RGB, OCCLUSION),
    each: Callable[[Window, Rectified], object] | None = None,
) -> Products:
    """Rectifies an image window by window into files called `<stem>_<name>.tif`.

    Heights are float32 metres with NaN as no-data; colours keep a mask, for a black pixel is data;
    occlusion is 0 seen, 1 hidden, 255 unknown, its no-data. The memory needed is that of a few
    windows, whatever the image's size.

    Args:
        work: the image.
        stem: what the files are called after.
        out: folder, made if missing.
        names: which of AGL, RGB, OCCLUSION to write; none = only `each` gets them.
        each: called with every window and what belongs there, row by row.

    Raises:
        InputError: heights that are infinite, sizes that differ.
        RunError: a product cannot be written.
    """
    counts = np.zeros(256, np.int64)
    tags = work.tags | {
        "GEOPOSE_SCALE_PX_PER_M": f"{work.scale_px_per_m:.9g}",
        "GEOPOSE_ANGLE_RAD": f"{work.angle_rad:.9g}",
    }
    shape = (work.heights.shape[0], work.heights.shape[1])
    pieces = rectify_windows(work.heights, work.scale_px_per_m, work.angle_rad, work.rgb)
    first = next(pieces)  # wrong heights are found before anything is written
    with ExitStack() as stack:
        if names:
            out.mkdir(parents=True, exist_ok=True)
        files = tuple(out / f"{stem}_{name}.tif" for name in names)
        writers = {
            name: stack.enter_context(_create(path, name, shape, work.place, tags))
            for path, name in zip(files, names, strict=True)
        }
        for window, part in chain([first], pieces):
            at = window[0].start, window[1].start
            if AGL in writers:
                writers[AGL].write(part.agl_m, *at)
            if OCCLUSION in writers:
                writers[OCCLUSION].write(part.occlusion, *at)
            if RGB in writers and part.rgb is not None:
                writers[RGB].write(part.rgb, *at, valid=part.occlusion == SEEN)
            counts += np.bincount(part.occlusion.reshape(-1), minlength=256)
            if each is not None:
                each(window, part)
    seen, hidden, unknown = counts[[0, 1, 255]] / counts.sum()
    return Products(files, (float(seen), float(hidden), float(unknown)))


def _create(
    path: Path, name: str, shape: tuple[int, int], place: Georeference, tags: dict[str, str]
) -> AbstractContextManager[RasterWriter]:
    if name == AGL:
        return create_raster(
            path, *shape, 1, np.float32, nodata=float("nan"), georeference=place, tags=tags,
            descriptions=("height above ground on its footprint",), units=("metre",),
        )  # fmt: skip
    if name == RGB:
        return create_raster(
            path, *shape, 3, np.uint8, mask=True, georeference=place, tags=tags,
            descriptions=("red", "green", "blue"),
        )  # fmt: skip
    return create_raster(
        path, *shape, 1, np.uint8, nodata=UNKNOWN, categories=True, georeference=place, tags=tags,
        descriptions=("0 seen, 1 hidden, 255 unknown",),
    )  # fmt: skip
