"""Pixels that a file itself declares to be no data, in any of the ways that files have.

In: an open TIFF and its image page. Out: where nothing is known. The ways: GDAL's no-data tag
(42113), the item NODATA_VALUES of its metadata (42112), a mask page, an alpha channel; beside the
file `NAME.msk` and the no-data value in `NAME.aux.xml`. In a PNG: a transparent colour.
"""

import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

ALPHA_KINDS = (1, 2)  # of ExtraSamples: associated and unassociated
MASK_TYPE = 4  # bit of NewSubfileType; also the photometric interpretation of masks
_SMALLER_TYPE = 1  # bit of NewSubfileType: of an overview
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
_METADATA_ITEM = re.compile(r'<Item name="NODATA_VALUES"[^>]*>([^<]*)</Item>')
_SIDECAR_VALUE = re.compile(r"<NoDataValue[^>]*>([^<]*)</NoDataValue>")
_SIDECAR_BYTES = 1 << 20

Unknown = NDArray[np.bool_]


def is_mask(page: tifffile.TiffPage) -> bool:
    """Whether a page says which pixels of another one count."""
    return bool(page.subfiletype & MASK_TYPE) or page.photometric == MASK_TYPE


def has_alpha(page: tifffile.TiffPage, colours: int) -> bool:
    """Whether a page has this many channels and one that says which pixels count."""
    extra = tuple(int(kind) for kind in page.extrasamples)
    return page.samplesperpixel == colours + 1 and len(extra) == 1 and extra[0] in ALPHA_KINDS


def declares(tiff: tifffile.TiffFile, page: tifffile.TiffPage, path: Path) -> bool:
    """Whether a file may say of a pixel that it is no data; from its headers alone."""
    return bool(
        page.tags.get(_GDAL_NODATA)
        or _METADATA_ITEM.search(_text(page, _GDAL_METADATA))
        or any(int(kind) in ALPHA_KINDS for kind in page.extrasamples)
        or _mask_page(tiff, page)
        or _sidecar(path, ".msk")
        or _sidecar(path, ".aux.xml")
    )


def unknown_pixels(
    tiff: tifffile.TiffFile, page: tifffile.TiffPage, path: Path, samples: NDArray
) -> Unknown | None:
    """Where a TIFF says that it knows nothing; None if that is nowhere.

    Args:
        tiff: the open file.
        page: its image.
        path: where it is; other files beside it may say something too.
        samples: H x W x channels of the page, alpha included.

    Raises:
        ValueError: a declaration that makes no sense.
    """
    height, width = samples.shape[:2]
    unknown = np.zeros((height, width), bool)
    colours = samples
    if has_alpha(page, samples.shape[2] - 1):
        unknown |= samples[..., -1] == 0
        colours = samples[..., :-1]
    for values in _values(page, path):
        unknown |= _equal(colours, values)
    if (mask := _mask_page(tiff, page)) is not None:
        unknown |= mask.asarray(maxworkers=1).reshape(height, width) == 0
    if mask_file := _sidecar(path, ".msk"):
        unknown |= _read_mask_file(mask_file, (height, width))
    return unknown if unknown.any() else None


def transparent_pixels(data: bytes, rgb: NDArray[np.uint8]) -> Unknown | None:
    """Where an 8-bit RGB PNG has the colour that it declares to be transparent."""
    at = data.find(b"tRNS", 33, data.find(b"IDAT"))
    if at < 0:
        return None
    colour = struct.unpack_from(">3H", data, at + 4)
    unknown = (rgb == np.array(colour)).all(axis=2)
    return unknown if unknown.any() else None


def _values(page: tifffile.TiffPage, path: Path) -> list[list[float]]:
    """Every declared value: one for each channel, or one for all of them."""
    found = []
    if page.tags.get(_GDAL_NODATA):
        found.append(_numbers(_text(page, _GDAL_NODATA)))
    if item := _METADATA_ITEM.search(_text(page, _GDAL_METADATA)):
        found.append(_numbers(item.group(1)))
    if sidecar := _sidecar(path, ".aux.xml"):
        with sidecar.open("rb") as file:
            text = file.read(_SIDECAR_BYTES).decode(errors="replace")
        if values := [_numbers(value)[0] for value in _SIDECAR_VALUE.findall(text)]:
            found.append(values)
    return found


def _text(page: tifffile.TiffPage, code: int) -> str:
    tag = page.tags.get(code)
    value = "" if tag is None else tag.value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _numbers(text: str) -> list[float]:
    words = text.strip("\0 \t\r\n").split()
    try:
        if words:
            return [float(word) for word in words]
    except ValueError:
        pass
    raise ValueError(f"its no-data value is {text.strip(chr(0))[:40]!r}, expected a number")


def _equal(colours: NDArray, values: list[float]) -> Unknown:
    """Where all channels have their no-data value; a value that none can have is nowhere."""
    channels = colours.shape[2]
    if len(values) not in (1, channels):
        raise ValueError(f"it declares {len(values)} no-data values for {channels} channels")
    equal = np.ones(colours.shape[:2], bool)
    for channel, value in enumerate(values * channels if len(values) == 1 else values):
        layer = colours[..., channel]
        if math.isnan(value):
            equal &= layer != layer
        else:
            equal &= layer == np.float64(value)
    return equal


def _mask_page(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> tifffile.TiffPage | None:
    """The mask of the full image, if the file has one."""
    size = (page.imagelength, page.imagewidth)
    for other in tiff.pages:
        if isinstance(other, tifffile.TiffPage) and is_mask(other):
            if (other.imagelength, other.imagewidth) == size:
                return other
            if not other.subfiletype & _SMALLER_TYPE:
                raise ValueError("its mask has another size than the image")
    return None


def _sidecar(path: Path, suffix: str) -> Path | None:
    """A file beside another one, if it is there; a name that is too long for one is not."""
    beside = path.with_name(path.name + suffix)
    return beside if os.path.isfile(beside) else None


def _read_mask_file(path: Path, size: tuple[int, int]) -> Unknown:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if (page.imagelength, page.imagewidth) != size:
            raise ValueError(f"{path.name} has another size than the image")
        return page.asarray(maxworkers=1).reshape(*size, -1)[..., 0] == 0
