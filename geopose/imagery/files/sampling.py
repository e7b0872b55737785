"""Values of an image between its pixels, by windows; no-data is neither smeared nor invented.

In: an open raster and (column, row) of each wanted point, 0 = centre of the first pixel.
Out: values, and which of them are known.
"""

import math

import numpy as np
from numpy.typing import NDArray

from geopose.imagery.files.raster import Raster

Array = NDArray[np.float64]


def sample(
    raster: Raster, column: Array, row: Array, bilinear: bool
) -> tuple[NDArray, NDArray[np.bool_]]:
    """The image's values at points, which should lie close together: their window is read.

    Args:
        raster: the image.
        column: H x W, pixels; NaN = nowhere.
        row: the same.
        bilinear: mean of the four pixels around, without those that are no-data; otherwise the
            nearest pixel, which suits heights and classes: a mean of a roof and a street is a
            height that nothing has.

    Returns:
        (H x W x C of the raster's type, H x W): the second is True where the nearest pixel exists
        and is valid; the first is 0 elsewhere.
    """
    known = (column >= -0.5) & (column < raster.width - 0.5)
    known &= (row >= -0.5) & (row < raster.height - 0.5)
    values = np.zeros((*column.shape, raster.count), raster.dtype)
    if not known.any():
        return values, known
    x, y = column[known], row[known]
    rows, columns = _span(y, raster.height), _span(x, raster.width)
    pixels = raster.read(rows, columns)
    pixels = pixels.reshape(*pixels.shape[:2], raster.count)
    valid = raster.valid(rows, columns)
    x, y = x - columns.start, y - rows.start
    i, j = np.floor(y + 0.5).astype(np.intp), np.floor(x + 0.5).astype(np.intp)
    found = valid[i, j]
    values[known] = _mean_of_four(pixels, valid, x, y) if bilinear else pixels[i, j]
    known[known] = found
    values[~known] = 0
    return values, known


def _span(at: Array, size: int) -> slice:
    """The pixels of an axis that points in between need, a neighbour on either side included."""
    return slice(max(math.floor(at.min()), 0), min(math.floor(at.max()) + 2, size))


def _mean_of_four(pixels: NDArray, valid: NDArray[np.bool_], x: Array, y: Array) -> NDArray:
    """Bilinear means over the valid ones of four neighbours; N x C of the pixels' type."""
    total = np.zeros((x.size, pixels.shape[2]))
    weights = np.zeros(x.size)
    top, left = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    for di in (0, 1):
        for dj in (0, 1):
            # Beyond the border its own pixels go on.
            i = np.clip(top + di, 0, pixels.shape[0] - 1)
            j = np.clip(left + dj, 0, pixels.shape[1] - 1)
            weight = np.abs(1 - di - (y - top)) * np.abs(1 - dj - (x - left)) * valid[i, j]
            # Not 0 times the value: no-data is often NaN.
            total += np.where(valid[i, j, None], weight[:, None] * pixels[i, j], 0.0)
            weights += weight
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / weights[:, None]
    mean[~np.isfinite(mean)] = 0.0
    if pixels.dtype.kind == "f":
        return mean.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    return np.clip(np.rint(mean), limits.min, limits.max).astype(pixels.dtype)
