"""Writes images of any size a window at a time, as cloud-optimised GeoTIFF.

In: windows of pixels. Out: a file that appears whole: tiles, deflate with predictor, overviews,
no-data, units, descriptions, statistics, tags and the place on the earth. GDAL's own COG driver
does all of it through rasterio, which adds 108 MB; rio-cogeo, which would add 43 MB more (pyproj,
pydantic, morecantile), does nothing beyond that here and only validates in the tests.
Without rasterio: a tiled TIFF with the pixels, the no-data value and the mask as an alpha channel,
without overviews, statistics, units, tags and georeference.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray

from geopose.errors import GeoposeError, RunError, one_line
from geopose.files.atomic import atomic_path, scratch_path
from geopose.imagery.place.gdal import INSTALL, find_rasterio, quiet
from geopose.imagery.place.georeference import Georeference, write_georeference
from geopose.system.cores import usable_cores

logger = logging.getLogger(__name__)

TILE = 512
_BIG_TIFF_BYTES = 2**32 - 2**25  # what tifffile itself goes by: 4 GB less room for the directory


class RasterWriter(Protocol):
    """A raster being written: windows in any order; what is never written is no-data (or 0)."""

    def write(
        self, array: NDArray, row: int, column: int, valid: NDArray[np.bool_] | None = None
    ) -> None:
        """Writes a window.

        Args:
            array: H x W x C, or H x W of a single band, of the raster's type.
            row: of the window's first pixel; the window lies inside the raster.
            column: the same.
            valid: H x W, for rasters created with `mask`: False = no data. None = all valid.
        """


@contextmanager
def create_raster(
    path: Path | str,
    height: int,
    width: int,
    count: int,
    dtype: DTypeLike,
    *,
    nodata: float | None = None,
    mask: bool = False,
    categories: bool = False,
    georeference: Georeference | None = None,
    descriptions: Sequence[str] = (),
    units: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> Iterator[RasterWriter]:
    """A raster to be written a window at a time; the file appears when the block ends well.

    Windows go to an uncompressed file beside it, so the folder needs room for both; the memory
    needed is that of a window.

    Args:
        path: the .tif file.
        height: rows.
        width: columns.
        count: bands.
        dtype: of the pixels.
        nodata: the value that means "unknown"; None = every value is data.
        mask: keep a mask beside the pixels, for images in which every value is data (RGB: a black
            pixel is no hole). `write` then takes `valid`; what is not written is not valid.
        categories: values are classes: overviews take the most frequent one, not the mean.
        georeference: where it lies; None = nowhere.
        descriptions: what each band is, such as "height above ground".
        units: of each band's values, such as "metre".
        tags: what else is to be known of the file: where it came from.

    Raises:
        RunError: it cannot be written.
    """
    path, dtype = Path(path), np.dtype(dtype)
    place = georeference or Georeference()
    rasterio = find_rasterio()
    try:
        with atomic_path(path) as partial, scratch_path(path) as work:
            if rasterio is None:
                if place != Georeference():
                    logger.warning("%s: written without its place; that needs %s", path, INSTALL)
                plain = _PlainWriter(work, (height, width, count), dtype, nodata, mask)
                yield plain
                plain.finish(partial)
                return
            options = {"nodata": nodata, "count": count, "dtype": dtype.name}
            with _settings(rasterio):
                dataset = _open_work(rasterio, work, height, width, options)
            writer = _GdalWriter(rasterio, dataset, mask)
            try:
                with _settings(rasterio):
                    write_georeference(dataset, place)
                    _describe(dataset, descriptions, units, tags or {})
                yield writer
            finally:
                writer.close()
            with _settings(rasterio):
                _copy_as_cog(rasterio, work, partial, categories)
    except GeoposeError:
        raise
    except _gdal_errors(rasterio) as error:
        reason = one_line(error.__cause__ or error, 120)
        raise RunError(f"cannot write {path}: {reason}; check the disk's space") from error


@contextmanager
def _settings(rasterio: Any) -> Iterator[None]:
    """For each step by itself: a caller may read other files in between, by its own settings."""
    with quiet(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_PAM_ENABLED=False):
        yield


def _gdal_errors(rasterio: Any) -> tuple[type[Exception], ...]:
    return () if rasterio is None else (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError)


def _open_work(rasterio: Any, work: Path, height: int, width: int, options: dict[str, Any]) -> Any:
    # Uncompressed: windows need not follow the tiles, and a tile may be written more than once.
    return rasterio.open(
        work, "w", driver="GTiff", height=height, width=width, tiled=True, blockxsize=TILE,
        blockysize=TILE, bigtiff="IF_NEEDED", sparse_ok=True, interleave="pixel", **options,
    )  # fmt: skip


def _describe(
    dataset: Any, descriptions: Sequence[str], units: Sequence[str], tags: Mapping[str, str]
) -> None:
    for band, text in enumerate(descriptions, 1):
        dataset.set_band_description(band, text)
    for band, unit in enumerate(units, 1):
        dataset.set_band_unit(band, unit)
    dataset.update_tags(**tags)


class _GdalWriter:
    def __init__(self, rasterio: Any, dataset: Any, mask: bool) -> None:
        self._rasterio, self._dataset, self._mask = rasterio, dataset, mask

    def write(
        self, array: NDArray, row: int, column: int, valid: NDArray[np.bool_] | None = None
    ) -> None:
        pixels = _checked(array, self._dataset.count, self._dataset.dtypes[0])
        height, width = pixels.shape[:2]
        _check_inside(row, column, height, width, self._dataset.shape)
        window = self._rasterio.windows.Window(column, row, width, height)
        with _settings(self._rasterio):
            self._dataset.write(np.moveaxis(pixels, -1, 0), window=window)
            if self._mask:
                known = np.ones((height, width), bool) if valid is None else valid
                self._dataset.write_mask(known.astype(np.uint8) * 255, window=window)

    def close(self) -> None:
        with _settings(self._rasterio):
            self._dataset.close()


def _copy_as_cog(rasterio: Any, work: Path, path: Path, categories: bool) -> None:
    """Tiles, then overviews in which no-data has no share, in the order that readers over a
    network want; statistics go to the bands' metadata."""
    rasterio.shutil.copy(
        work, path, driver="COG", compress="DEFLATE", predictor="YES", blocksize=TILE,
        bigtiff="IF_SAFER", overview_resampling="MODE" if categories else "AVERAGE",
        statistics="YES", num_threads=usable_cores(),
    )  # fmt: skip


class _PlainWriter:
    """Without rasterio: pixels go to a memory-mapped file, then to a tiled TIFF."""

    def __init__(
        self,
        work: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        nodata: float | None,
        mask: bool,
    ) -> None:
        self._nodata, self._alpha, self._count = nodata, mask, shape[2]
        self._shape = (*shape[:2], shape[2] + mask)
        self._pixels = np.memmap(work, dtype, "w+", shape=self._shape)
        if nodata is not None:
            self._pixels[...] = nodata

    def write(
        self, array: NDArray, row: int, column: int, valid: NDArray[np.bool_] | None = None
    ) -> None:
        pixels = _checked(array, self._count, self._pixels.dtype)
        height, width = pixels.shape[:2]
        _check_inside(row, column, height, width, self._shape[:2])
        window = self._pixels[row : row + height, column : column + width]
        window[..., : self._count] = pixels
        if self._alpha:
            known = np.ones((height, width), bool) if valid is None else valid
            window[..., self._count] = known * _opaque(self._pixels.dtype)

    def finish(self, path: Path) -> None:
        nodata = self._nodata
        extra = [] if nodata is None else [(42113, "s", 0, f"{nodata:.17g}", True)]
        size = self._pixels.nbytes
        shape, plan = (self._shape, "contig") if self._shape[2] > 1 else (self._shape[:2], None)
        tifffile.imwrite(
            path, self._tiles(), shape=shape, dtype=self._pixels.dtype, tile=(TILE, TILE),
            photometric="rgb" if self._count == 3 else "minisblack", planarconfig=plan,
            extrasamples=["unassalpha"] if self._alpha else None, compression="adobe_deflate",
            predictor=True, bigtiff=size > _BIG_TIFF_BYTES, extratags=extra, metadata=None,
            software=False,
        )  # fmt: skip

    def _tiles(self) -> Iterator[NDArray]:
        height, width, count = self._shape
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                tile = np.zeros((TILE, TILE, count), self._pixels.dtype)
                part = self._pixels[top : top + TILE, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile if count > 1 else tile[..., 0]


def _opaque(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0


def _checked(array: NDArray, count: int, dtype: DTypeLike) -> NDArray:
    """H x W x C of the raster's type; a ValueError is a caller's mistake."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] != count or pixels.dtype != np.dtype(dtype):
        raise ValueError(f"expected H x W x {count} {dtype}, got {array.shape} {array.dtype}")
    return pixels


def _check_inside(row: int, column: int, height: int, width: int, shape: tuple[int, ...]) -> None:
    if min(row, column) < 0 or row + height > shape[0] or column + width > shape[1]:
        raise ValueError(f"window {row, column, height, width} is not inside {shape}")
