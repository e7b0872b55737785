"""Colours of any image as a model sees them: its bands and their stretch to 8 bits, once an image.

In: an open raster of 1 and more bands, 8 or 16 bit or float. Out: H x W x 3 uint8 RGB windows, and
which pixels are data. Limits of the stretch are found once, over valid pixels of the whole image:
limits of each tile would make a grid of them.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.imagery.files.raster import Raster, windows

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
_AUTO_PERCENT = (1.0, 99.0)
_SAMPLE_PX = 256  # windows that limits are found from
_MOST_WINDOWS = 256  # 16.8 million pixels
_NAMES = ("red", "green", "blue")
_EIGHT_BANDS = (5, 3, 2)  # WorldView-2 and 3: coastal, blue, green, yellow, red, ...

Window = tuple[slice, slice]


@dataclass(frozen=True)
class StretchChoice:
    """How pixels become 8 bits, as a user says it.

    Attributes:
        kind: "auto" (8 bits as stored, else percentiles), "none", "percent" or "values".
        low: percentile or value that becomes 0.
        high: the one that becomes 255.
    """

    kind: str = AUTO
    low: float = _AUTO_PERCENT[0]
    high: float = _AUTO_PERCENT[1]


def parse_stretch(text: str) -> StretchChoice:
    """`auto`, `none`, `2,98` (percentiles of valid pixels) or `0:2047` (values).

    Raises:
        InputError: anything else.
    """
    if text in (AUTO, NONE):
        return StretchChoice(text)
    kind, mark = ("values", ":") if ":" in text else ("percent", ",")
    try:
        low, high = map(float, text.split(mark))
    except ValueError:
        low = high = math.nan
    in_range = kind == "values" or (low >= 0.0 and high <= 100.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high and in_range):
        raise InputError(
            f"--stretch {text}: expected auto, none, LOW,HIGH (percentiles from 0 to 100) or "
            "LOW:HIGH (values), the lower one first"
        )
    return StretchChoice(kind, low, high)


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Band numbers from 1, one or three of them: `5,3,2`; None stays None.

    Raises:
        InputError: anything else.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(p.strip().isdecimal() and int(p) for p in parts):
        raise InputError(f"--bands {text}: expected three band numbers from 1 (R,G,B), or one")
    return tuple(map(int, parts))


def choose_bands(raster: Raster, wanted: tuple[int, ...] | None) -> tuple[tuple[int, ...], str]:
    """The bands for red, green and blue, from 0, and why these.

    Args:
        raster: the image.
        wanted: from 1, one or three; None = by the file's own words, else by their number.

    Raises:
        InputError: a band that is not there, or a number of bands that says nothing.
    """
    count = raster.count
    if wanted is not None:
        if max(wanted) > count:
            raise InputError(
                f"{raster.path}: --bands {','.join(map(str, wanted))}, but it has {count} band"
                f"{'s' if count > 1 else ''}"
            )
        return _three(wanted), "as given"
    if count == 1:
        return (0, 0, 0), "one band, repeated"
    said = [text.strip().lower() for text in raster.descriptions]
    if all(name in said for name in _NAMES):
        named = tuple(said.index(name) + 1 for name in _NAMES)
        return _three(named), "by the file's band names"
    if count in (3, 4):
        return (0, 1, 2), "the first three"
    if count == 8:
        return _three(_EIGHT_BANDS), "red, green, blue of WorldView's eight"
    raise InputError(f"{raster.path}: {count} bands; say which are red, green, blue: --bands R,G,B")


def _three(bands: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(band - 1 for band in (bands if len(bands) == 3 else bands * 3))


@dataclass(frozen=True)
class Colours:
    """How an image's pixels become RGB; a few numbers, for every window the same.

    Attributes:
        bands: of red, green and blue, from 0.
        limits: (low, high) of each: low and less becomes 0, high and more 255; None = as stored.
        nodata: a value that means no data where all chosen bands have it; None = what the file
            says is all.
        words: what was done, for tags.
    """

    bands: tuple[int, ...]
    limits: tuple[tuple[float, float], ...] | None
    nodata: float | None
    words: str

    @staticmethod
    def of(
        raster: Raster,
        bands: tuple[int, ...] | None = None,
        stretch: StretchChoice | None = None,
        nodata: float | None = None,
    ) -> "Colours":
        """Finds an image's bands and limits.

        Raises:
            InputError: bands that are not there, no valid pixel, or 16-bit pixels without stretch.
        """
        stretch = stretch or StretchChoice()
        chosen, why = choose_bands(raster, bands)
        named = f"bands {','.join(str(b + 1) for b in chosen)} ({why})"
        eight = raster.dtype == np.uint8
        if stretch.kind == NONE and not eight:
            raise InputError(f"{raster.path}: pixels of {raster.dtype} need a stretch to 8 bits")
        plain = Colours(chosen, None, nodata, f"{named}; 8 bits as stored")
        if stretch.kind == NONE or (stretch.kind == AUTO and eight):
            return plain
        if stretch.kind == "values":
            limits: tuple[tuple[float, float], ...] = ((stretch.low, stretch.high),) * 3
            words = f"values {stretch.low:g} to {stretch.high:g}"
        else:
            limits = _percentiles(plain, raster, stretch.low, stretch.high)
            found = ", ".join(f"{low:g} to {high:g}" for low, high in limits)
            words = f"percentiles {stretch.low:g} to {stretch.high:g} of valid pixels: {found}"
        return Colours(chosen, limits, nodata, f"{named}; {words}")

    def read(self, raster: Raster, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(H x W x 3 RGB, 0 where there is no data; H x W, True = data) of a window.

        Raises:
            InputError: the file is broken there.
        """
        pixels, valid = self._data(raster, window)
        if self.limits is None:
            rgb = pixels.astype(np.uint8)
        else:
            low, high = np.array(self.limits, np.float32).T
            with np.errstate(invalid="ignore", over="ignore"):
                scaled = (pixels.astype(np.float32) - low) * (255.0 / (high - low))
                rgb = np.rint(np.nan_to_num(scaled).clip(0, 255)).astype(np.uint8)
        if not valid.all():
            rgb[~valid] = 0
        return rgb, valid

    def valid(self, raster: Raster, window: Window) -> NDArray[np.bool_]:
        """H x W of a window, True = data."""
        if self.nodata is None:
            return raster.valid(*window)
        return self._data(raster, window)[1]

    def _data(self, raster: Raster, window: Window) -> tuple[NDArray, NDArray[np.bool_]]:
        pixels = raster.read(*window)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        pixels, valid = pixels[..., list(self.bands)], raster.valid(*window)
        if self.nodata is not None:
            valid = valid & (pixels != self.nodata).any(axis=-1)
        return pixels, valid


def _percentiles(
    plain: Colours, raster: Raster, low: float, high: float
) -> tuple[tuple[float, float], ...]:
    """Limits of each band over valid pixels, of a regular sample of windows in large images."""
    every = list(windows(raster.height, raster.width, _SAMPLE_PX))
    step = math.ceil(len(every) / _MOST_WINDOWS)
    found = _valid_pixels(plain, raster, every[step // 2 :: step])
    if not len(found):  # data may be in a corner of it
        found = _valid_pixels(plain, raster, every)
    if not len(found):
        raise InputError(f"{raster.path}: no pixel of it is data, by its no-data value or mask")
    limits = []
    for band in found.T:
        first, last = (float(v) for v in np.percentile(band, (low, high)))
        limits.append((first, last if last > first else first + 1.0))
    return tuple(limits)


def _valid_pixels(plain: Colours, raster: Raster, some: list[Window]) -> NDArray:
    """N x 3 pixels of windows, those that are data and finite; at most 17 million."""
    parts, total = [], 0
    for window in some:
        pixels, valid = plain._data(raster, window)
        kept = pixels[valid]
        kept = kept[np.isfinite(kept).all(axis=-1)]
        parts.append(kept)
        total += len(kept)
        if total > _MOST_WINDOWS * _SAMPLE_PX**2:
            break
    return np.concatenate(parts) if parts else np.empty((0, 3))
