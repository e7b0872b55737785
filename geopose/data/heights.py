"""Reads and writes height maps: uint16 centimetres on disk, 65535 = no data.

In: paths. Out: H x W heights in metres, NaN for no data, and the reverse.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from geopose.data.decoding import (
    DECODE_ERRORS,
    TIFF_MAGICS,
    WrongKind,
    count,
    only_page,
    read_bytes,
    read_page,
)
from geopose.data.formats.nodata import Unknown, has_alpha, unknown_pixels
from geopose.data.formats.orientation import UPRIGHT, describe, tiff_orientation
from geopose.data.raw import RawFile, is_raw, open_raw_of
from geopose.errors import InputError, RunError, StorageError, one_line
from geopose.files.atomic import atomic_path

NODATA_CM = 65535
MAX_AGL_M = 655.34
CM_PER_M = 100.0
_ROUNDING_M = 0.005


def read_agl_m(path: Path | str, dtype: type = np.float32) -> NDArray:
    """Reads a height map: one-page uint16 TIFF, or raw, in centimetres, 65535 = no data.

    Returns:
        H x W of this floating type, metres above ground, NaN where there is no data.

    Raises:
        InputError: missing or broken file, or not a single-channel 16-bit unsigned TIFF.
    """
    return metres(read_agl_cm(path), dtype)


def open_agl_m(path: Path | str) -> "RawHeights | NDArray[np.float32]":
    """A height map of which windows are taken: a raw file, read in part, or a TIFF, read here.

    Returns:
        H x W float32 metres, NaN = no data; `heights[rows, columns]` and `shape` work on both.

    Raises:
        InputError: as for `read_agl_m`; also later, when a window cannot be read.
    """
    path = Path(path)
    return RawHeights(open_raw_of(path, "heights")) if is_raw(path) else read_agl_m(path)


class RawHeights:
    """The heights of a raw file in metres, NaN = no data, converted as they are read."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self.shape = raw.shape

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[np.float32]:
        """Some rows and columns; an array of its own."""
        return metres(self._raw[window])


class MaskedHeights:
    """Heights that are NaN wherever their image has no data, too.

    Args:
        heights: H x W metres, an array or a file.
        unknown: H x W.
    """

    def __init__(self, heights: "RawHeights | NDArray[np.float32]", unknown: Unknown) -> None:
        self._heights, self._unknown = heights, unknown
        self.shape = heights.shape

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[np.float32]:
        """Some rows and columns; an array of its own."""
        return np.where(self._unknown[window], np.float32(np.nan), self._heights[window])


def metres(agl_cm: NDArray[np.uint16], dtype: type = np.float32) -> NDArray:
    """Stored centimetres as metres, NaN = no data; a new array of this floating type."""
    agl_m = agl_cm.astype(dtype) / dtype(CM_PER_M)
    agl_m[agl_cm == NODATA_CM] = np.nan
    return agl_m


def read_agl_cm(path: Path | str) -> NDArray[np.uint16]:
    """Reads a height map as stored: H x W uint16 centimetres, 65535 = no data.

    What the file declares to be no data in another way (a value of its own, a mask, alpha) is
    65535 here too.

    Raises:
        InputError: as for `read_agl_m`.
    """
    path = Path(path)
    if is_raw(path):
        return open_raw_of(path, "heights").read()
    if not read_bytes(path, 8).startswith(TIFF_MAGICS):
        raise InputError(f"{path}: not a TIFF file; heights are one-channel uint16 TIFF in cm")
    try:
        with tifffile.TiffFile(path) as tiff:
            page = only_page(tiff)
            if page.samplesperpixel != 1 and not has_alpha(page, 1):
                raise WrongKind(count(page.samplesperpixel, "channel"))
            if page.bitspersample != 16 or page.dtype != np.uint16:
                raise WrongKind(f"{page.bitspersample}-bit {page.dtype} samples")
            if page.photometric != 1:
                raise WrongKind(f"{getattr(page.photometric, 'name', page.photometric)} values")
            if (orientation := tiff_orientation(page)) != UPRIGHT:
                raise WrongKind(f"the orientation {orientation} ({describe(orientation)})")
            samples = _channels_last(read_page(page), page)
            unknown = unknown_pixels(tiff, page, path, samples)
    except WrongKind as kind:
        raise InputError(f"{path}: it has {kind}; heights are one-channel uint16 in cm") from None
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken TIFF ({one_line(error, 120)}); get a good copy"
        ) from error
    agl_cm = np.ascontiguousarray(samples[..., 0], dtype=np.uint16)
    if unknown is not None:
        agl_cm[unknown] = NODATA_CM
    return agl_cm


def _channels_last(array: NDArray, page: tifffile.TiffPage) -> NDArray:
    """Samples of a page as H x W x channels."""
    size = (page.imagelength, page.imagewidth)
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        return np.moveaxis(array.reshape(page.samplesperpixel, *size), 0, -1)
    return array.reshape(*size, page.samplesperpixel)


def fits_cm(agl_m: Any) -> Any:
    """Where heights in metres fit uint16 centimetres: False for NaN and beyond 0..655.34.

    Takes and returns NumPy arrays or tensors, so that a GPU decides by the same rule.
    """
    return (agl_m >= -_ROUNDING_M) & (agl_m <= MAX_AGL_M + _ROUNDING_M)


def round_cm(agl_m: Any) -> Any:
    """Whole centimetres of heights in metres, double precision, for which `fits_cm` holds."""
    return (agl_m * CM_PER_M).round().clip(0, NODATA_CM - 1)


def misfit_message(count: int, height_m: float, row: int, column: int) -> str:
    """What to say about heights for which `fits_cm` does not hold, the first of them described."""
    return (
        f"{count} heights cannot be stored in cm, the first is {height_m} m at row {row}, "
        f"column {column} (0..{MAX_AGL_M} m can)"
    )


def write_agl_cm(path: Path | str, agl_m: NDArray[np.floating], allow_nodata: bool = False) -> None:
    """Writes a height map in metres as one-page uint16 TIFF in centimetres, Adobe deflate.

    Args:
        path: the .tif file.
        agl_m: H x W heights in metres, 0..655.34.
        allow_nodata: write NaN as 65535; otherwise NaN is refused.

    Raises:
        StorageError: a height that uint16 centimetres cannot hold. The file is not written then.
    """
    if agl_m.ndim != 2 or agl_m.size == 0:
        raise RunError(f"{path}: a height map of shape {agl_m.shape} cannot be written")
    agl_cm, bad = to_cm(agl_m, np.isnan(agl_m) & allow_nodata)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        height_m = agl_m[row, column]
        raise StorageError(f"{path}: {misfit_message(int(bad.sum()), height_m, row, column)}")
    write_cm(path, agl_cm)


def to_cm(
    agl_m: NDArray[np.floating], unknown: NDArray[np.bool_]
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Heights as they are stored: (uint16 centimetres, where a height does not fit, 0 there).

    Args:
        agl_m: metres, any shape.
        unknown: where 65535 is to be stored.
    """
    fits = fits_cm(agl_m)
    agl_cm = round_cm(np.where(fits, agl_m.astype(np.float64), 0.0)).astype(np.uint16)
    agl_cm[unknown] = NODATA_CM
    return agl_cm, ~(fits | unknown)


def write_cm(path: Path | str, agl_cm: NDArray[np.uint16]) -> None:
    """Writes a height map as it is stored: H x W uint16 centimetres, one-page TIFF, Adobe deflate.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial,
            agl_cm,
            compression="adobe_deflate",
            compressionargs={"level": 1},
            predictor=2,
            photometric="minisblack",
            metadata=None,
            software=False,
        )
