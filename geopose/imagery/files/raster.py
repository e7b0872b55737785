"""Images of any size in files of any kind: windows in, windows out.

In: a path. Out: pixels of a window and which of them are valid; and cloud-optimised GeoTIFFs.
rasterio reads what GDAL reads (GeoTIFF, NITF, JPEG 2000, VRT and more) a window at a time.
Without it PNG, JPEG, JPEG 2000, raw and plain TIFF files work, held in memory as a whole.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from geopose.data.decoding import (
    DECODE_ERRORS,
    PNG_MAGIC,
    TIFF_MAGICS,
    WrongKind,
    only_page,
    read_bytes,
    read_page,
)
from geopose.data.heights import NODATA_CM
from geopose.data.raw import RawFile, is_raw, open_raw
from geopose.data.rgb import read_rgb
from geopose.errors import InputError, one_line
from geopose.imagery.files.raster_writer import RasterWriter, create_raster
from geopose.imagery.place.gdal import INSTALL, find_rasterio, quiet
from geopose.imagery.place.georeference import Georeference, read_georeference

__all__ = ["Raster", "RasterWriter", "create_raster", "open_raster", "windows"]

logger = logging.getLogger(__name__)

_ALL = slice(None)
_PNG_TAIL = 4096  # bytes: some programs put something behind the end
_GDAL_NODATA_TAG = 42113
_PLACE_TAGS = (33550, 33922, 34264, 34735, 50844)  # GeoTIFF's pixel scale, points, matrix; RPC
_ALPHA_SAMPLES = (1, 2)  # ExtraSamples of TIFF 6.0: associated and unassociated alpha


class _Source(Protocol):
    """Where a raster's pixels come from: `read` gives all data bands, bands last."""

    def read(self, rows: slice, columns: slice) -> NDArray: ...
    def mask(self, rows: slice, columns: slice) -> NDArray[np.bool_] | None: ...
    def close(self) -> None: ...


class Raster:
    """An image file open for reading; a context manager.

    Attributes:
        path: the file.
        height: rows.
        width: columns.
        count: bands of data; an alpha channel is not one of them, `valid` tells what it says.
        dtype: of the pixels.
        nodata: the value that means "unknown", as the file states it; None = none stated.
        georeference: where it lies.
        descriptions: what each band is, "" = not stated.
        units: of each band's values, "" = not stated.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        source: _Source,
        nodata: float | None = None,
        georeference: Georeference | None = None,
        descriptions: tuple[str, ...] = (),
        units: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.height, self.width, self.count = shape
        self.dtype = dtype
        self.nodata = nodata
        self.georeference = georeference or Georeference()
        self.descriptions = descriptions or ("",) * self.count
        self.units = units or ("",) * self.count
        self._source = source

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def read(self, rows: slice = _ALL, columns: slice = _ALL) -> NDArray:
        """The pixels of a window as stored: H x W x C, or H x W of a single band.

        Slices are cut at the image's borders, as of arrays; steps are not possible.

        Raises:
            InputError: the file is broken there.
        """
        window = self._window(rows, columns)
        try:
            pixels = self._source.read(*window)
        except InputError:
            raise
        except DECODE_ERRORS as error:
            raise self._broken(error) from error
        return pixels[..., 0] if self.count == 1 else pixels

    def valid(self, rows: slice = _ALL, columns: slice = _ALL) -> NDArray[np.bool_]:
        """H x W, False where the file has no data: by its mask, alpha, no-data value, or NaN.

        A black pixel is data, unless the file says that 0 is not. Of several bands one that is
        valid is enough.

        Raises:
            InputError: the file is broken there.
        """
        window = self._window(rows, columns)
        try:
            mask = self._source.mask(*window)
        except DECODE_ERRORS as error:
            raise self._broken(error) from error
        floating = self.dtype.kind == "f"
        if mask is not None and not floating:
            return mask
        extent = _extent(window)
        if mask is None and not floating and self.nodata is None:
            return np.ones(extent, bool)
        pixels = self.read(*window).reshape(*extent, self.count)
        known = ~np.isnan(pixels) if floating else np.ones(pixels.shape, bool)
        if mask is None and self.nodata is not None:
            known &= pixels != self.nodata
        found = np.asarray(known.any(axis=-1))
        return found if mask is None else found & mask

    def close(self) -> None:
        """Ends reading."""
        self._source.close()

    def __enter__(self) -> "Raster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _window(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        (top, bottom, _), (left, right, _) = rows.indices(self.height), columns.indices(self.width)
        return slice(top, max(top, bottom)), slice(left, max(left, right))

    def _broken(self, error: BaseException) -> InputError:
        reason = one_line(error.__cause__ or error, 120)
        return InputError(f"{self.path}: broken image ({reason}); get a good copy")


def open_raster(path: Path | str) -> Raster:
    """Opens an image file of any kind and size for reading windows of it.

    Raises:
        InputError: missing, broken, of a kind that cannot be read, or one that needs rasterio.
    """
    path = Path(path)
    head = read_bytes(path, 16)  # the usual message for a path that is none; GDAL opens URLs too
    if is_raw(path):
        return _open_raw(path)
    rasterio = find_rasterio()
    if rasterio is None:
        return _open_tiff(path) if head.startswith(TIFF_MAGICS) else _open_other(path)
    if head.startswith(PNG_MAGIC):
        _check_png(path)
    try:
        with quiet():
            return _open_gdal(path, rasterio.open(path), rasterio)
    except (WrongKind, rasterio.errors.RasterioError, *DECODE_ERRORS) as error:
        raise InputError(
            f"{path}: not an image that GDAL reads ({one_line(error, 120)})"
        ) from error


def _check_png(path: Path) -> None:
    """GDAL reads half a PNG file without a word; a whole one ends with its IEND chunk."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _PNG_TAIL, 0))
        if b"IEND" not in file.read():
            raise InputError(f"{path}: broken image (truncated); get a good copy")


def windows(height: int, width: int, size: int) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of windows of size x size pixels that cover an image, row by row."""
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield slice(top, min(top + size, height)), slice(left, min(left + size, width))


class _Gdal:
    """Windows of a rasterio dataset."""

    def __init__(self, dataset: Any, rasterio: Any, bands: list[int]) -> None:
        self._dataset, self._bands = dataset, bands
        self._window = rasterio.windows.Window
        flags = dataset.mask_flag_enums[bands[0] - 1]
        self._masked = rasterio.enums.MaskFlags.all_valid not in flags

    def _cut(self, rows: slice, columns: slice) -> Any:
        (height, width) = _extent((rows, columns))
        return self._window(columns.start, rows.start, width, height)

    def read(self, rows: slice, columns: slice) -> NDArray:
        if 0 in _extent((rows, columns)):
            return np.empty((*_extent((rows, columns)), len(self._bands)), self._dataset.dtypes[0])
        pixels = self._dataset.read(self._bands, window=self._cut(rows, columns))
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

    def mask(self, rows: slice, columns: slice) -> NDArray[np.bool_] | None:
        if not self._masked or 0 in _extent((rows, columns)):
            return None
        return self._dataset.dataset_mask(window=self._cut(rows, columns)) > 0

    def close(self) -> None:
        self._dataset.close()


def _open_gdal(path: Path, dataset: Any, rasterio: Any) -> Raster:
    alpha = rasterio.enums.ColorInterp.alpha
    bands = [n for n, kind in enumerate(dataset.colorinterp, 1) if kind != alpha]
    dtypes = {dataset.dtypes[n - 1] for n in bands}
    if not bands or len(dtypes) > 1 or np.dtype(dataset.dtypes[bands[0] - 1]).kind not in "uif":
        dataset.close()
        raise WrongKind(f"bands of {', '.join(sorted(dtypes)) or 'no type'}")
    return Raster(
        path,
        (dataset.height, dataset.width, len(bands)),
        np.dtype(dtypes.pop()),
        _Gdal(dataset, rasterio, bands),
        dataset.nodata,
        read_georeference(dataset),
        tuple(dataset.descriptions[n - 1] or "" for n in bands),
        tuple(dataset.units[n - 1] or "" for n in bands),
    )


class _Memory:
    """Windows of an array or a raw file."""

    def __init__(self, pixels: NDArray | RawFile, alpha: NDArray | None = None) -> None:
        self._pixels, self._alpha = pixels, alpha

    def read(self, rows: slice, columns: slice) -> NDArray:
        window = np.array(self._pixels[rows, columns])
        return window if window.ndim == 3 else window[..., None]

    def mask(self, rows: slice, columns: slice) -> NDArray[np.bool_] | None:
        return None if self._alpha is None else self._alpha[rows, columns] > 0

    def close(self) -> None:
        pass


def _open_raw(path: Path) -> Raster:
    raw = open_raw(path)
    shape = _three(raw.shape)
    nodata = float(NODATA_CM) if shape[2] == 1 else None
    return Raster(path, shape, raw.dtype, _Memory(raw), nodata)


def _open_other(path: Path) -> Raster:
    try:
        rgb = read_rgb(path)
    except InputError as error:
        raise InputError(f"{error} (other kinds of images need {INSTALL})") from error
    return Raster(path, _three(rgb.shape), rgb.dtype, _Memory(rgb))


def _open_tiff(path: Path) -> Raster:
    try:
        with tifffile.TiffFile(path) as tiff:
            page = only_page(tiff)
            pixels = read_page(page).reshape(page.shape)
            tags = {code for code in _PLACE_TAGS if code in page.tags}
            stated = page.tags.get(_GDAL_NODATA_TAG)
            nodata = None if stated is None else float(str(stated.value).strip(" \0"))
            extra = tuple(page.extrasamples)
    except WrongKind as kind:
        raise InputError(f"{path}: it has {kind}; such files need {INSTALL}") from None
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken TIFF ({one_line(error, 120)}); get a good copy"
        ) from error
    if pixels.dtype.kind not in "uif":
        raise InputError(f"{path}: pixels of {pixels.dtype}; make them whole numbers or floats")
    if page.planarconfig == 2 and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if tags:
        logger.warning("%s: its place on the earth is not read; that needs %s", path, INSTALL)
    alpha = None
    if pixels.ndim == 3 and extra and extra[-1] in _ALPHA_SAMPLES:
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
    return Raster(path, _three(pixels.shape), pixels.dtype, _Memory(pixels, alpha), nodata)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def _extent(window: tuple[slice, slice]) -> tuple[int, int]:
    """(height, width) of a window."""
    return window[0].stop - window[0].start, window[1].stop - window[1].start
