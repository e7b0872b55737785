"""Heights, lengths of flow and uncertainty of an image as GeoTIFFs, written in one pass.

In: a predicted image. Out: its files, and what their heights are like. Where the source has no data
neither has a product.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import CM_PER_M, NODATA_CM, misfit_message, to_cm
from geopose.errors import StorageError
from geopose.imagery.files.raster import RasterWriter, create_raster, windows
from geopose.imagery.rectify import Window, Windows
from geopose.products.predicted import PredictedImage
from geopose.products.selection import KINDS, product_path

_WINDOW_PX = 2048
_DESCRIPTIONS = {
    "agl": "height above ground",
    "magnitude": "length of vertical flow",
    "uncertainty": "standard deviation of heights over views and models",
}
_UNITS = {"agl": "metre", "magnitude": "pixel", "uncertainty": "metre"}


@dataclass(frozen=True)
class HeightStatistics:
    """What an image's heights are like; all None where none is known.

    Attributes:
        known_share: of the pixels, 0 to 1.
        lowest_m: the lowest height.
        highest_m: the highest height.
        mean_m: mean.
        median_m: to a centimetre.
        high_m: 99 % of the heights are below it, to a centimetre.
    """

    known_share: float
    lowest_m: float | None = None
    highest_m: float | None = None
    mean_m: float | None = None
    median_m: float | None = None
    high_m: float | None = None


class Masked:
    """Windows of a map that are NaN where the image is not valid."""

    def __init__(self, values: Windows, valid: Windows) -> None:
        self._values, self._valid = values, valid
        self.shape = tuple(values.shape[:2])

    def __getitem__(self, window: Window) -> NDArray[np.float32]:
        """Some rows and columns; an array of its own."""
        values = np.asarray(self._values[window], np.float32)
        return np.where(self._valid[window], values, np.float32(np.nan))


@dataclass(frozen=True)
class MapsWritten:
    """Files by kind, and the statistics of the heights."""

    files: dict[str, Path]
    statistics: HeightStatistics


def write_maps(
    image: PredictedImage,
    out: Path,
    kinds: tuple[str, ...],
    tags: dict[str, str],
    uint16_cm: bool = False,
    each: Callable[[Window, NDArray[np.float32]], object] | None = None,
) -> MapsWritten:
    """Writes some of `<stem>_AGL.tif`, `_MAGNITUDE.tif` and `_UNCERTAINTY.tif`.

    Args:
        image: of any size; a few windows of it are in memory at a time.
        out: folder, there already.
        kinds: some of "agl", "magnitude", "uncertainty" (which the image must have).
        tags: of the files.
        uint16_cm: heights as whole centimetres with 65535 as no-data, as the archive holds them;
            otherwise float32 metres with NaN.
        each: called with every window and its heights, row by row.

    Raises:
        StorageError: heights that do not fit uint16 centimetres; no heights are written then.
        RunError: a file cannot be written.
    """
    maps = {"agl": image.agl_m, "magnitude": image.magnitude_px, "uncertainty": image.uncertainty_m}
    sources = {k: Masked(v, image.valid) for k, v in maps.items() if v is not None}
    files = {kind: product_path(out, image.stem, kind) for kind in kinds}
    tally, whole = _Tally(), _Centimetres(files.get("agl"))
    with ExitStack() as stack:
        writers = {
            kind: stack.enter_context(_create(path, kind, image, tags, uint16_cm and kind == "agl"))
            for kind, path in files.items()
        }
        for window in windows(*image.shape, _WINDOW_PX):
            agl_m = sources["agl"][window]
            tally.add(agl_m)
            for kind, writer in writers.items():
                values: NDArray = agl_m if kind == "agl" else sources[kind][window]
                if kind == "agl" and uint16_cm:
                    values = whole.of(agl_m, window)
                writer.write(values, window[0].start, window[1].start)
            if each is not None:
                each(window, agl_m)
        whole.check()
    return MapsWritten(files, tally.statistics())


def _create(
    path: Path, kind: str, image: PredictedImage, tags: dict[str, str], uint16_cm: bool
) -> AbstractContextManager[RasterWriter]:
    dtype, nodata, unit = np.float32, float("nan"), _UNITS[kind]
    if uint16_cm:
        dtype, nodata, unit = np.uint16, float(NODATA_CM), "centimetre"  # type: ignore[assignment]
    return create_raster(
        path, *image.shape, 1, dtype, nodata=nodata, georeference=image.georeference,
        descriptions=(_DESCRIPTIONS[kind],), units=(unit,),
        tags={"TITLE": KINDS[kind].title, **tags},
    )  # fmt: skip


class _Centimetres:
    """Windows in whole centimetres; what does not fit is counted, and refused in the end."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._count = path, 0
        self._first: tuple[int, int, float] | None = None

    def of(self, agl_m: NDArray[np.float32], window: Window) -> NDArray[np.uint16]:
        agl_cm, bad = to_cm(agl_m, np.isnan(agl_m))
        if bad.any():
            self._count += int(bad.sum())
            row, column = np.argwhere(bad)[0]
            found = (
                window[0].start + int(row),
                window[1].start + int(column),
                float(agl_m[row, column]),
            )
            self._first = min(self._first or found, found)
        return agl_cm

    def check(self) -> None:
        if self._first is not None:
            row, column, height_m = self._first
            raise StorageError(
                f"{self._path}: {misfit_message(self._count, height_m, row, column)}"
            )


class _Tally:
    """Statistics of heights that pass by in windows."""

    def __init__(self) -> None:
        self._counts = np.zeros(2**16, np.int64)  # of whole centimetres
        self._pixels, self._sum = 0, 0.0
        self._lowest, self._highest = np.inf, -np.inf

    def add(self, agl_m: NDArray[np.float32]) -> None:
        known = agl_m[~np.isnan(agl_m)]
        self._pixels += agl_m.size
        if not known.size:
            return
        cm = np.rint(known * np.float32(CM_PER_M)).clip(0, self._counts.size - 1)
        self._counts += np.bincount(cm.astype(np.int64), minlength=self._counts.size)
        self._sum += float(known.sum(dtype=np.float64))
        self._lowest = min(self._lowest, float(known.min()))
        self._highest = max(self._highest, float(known.max()))

    def statistics(self) -> HeightStatistics:
        total = int(self._counts.sum())
        if total == 0:
            return HeightStatistics(0.0)
        below = np.cumsum(self._counts)
        median, high = (int(np.searchsorted(below, share * total)) for share in (0.5, 0.99))
        return HeightStatistics(
            total / self._pixels, self._lowest, self._highest, self._sum / total,
            median / CM_PER_M, high / CM_PER_M,
        )  # fmt: skip
