"""How a file says that its picture is to be turned before anybody looks at it.

In: what has been read of a file. Out: the EXIF or TIFF orientation, 1 (upright) to 8.
"""

import struct

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

UPRIGHT = 1
_TAG = 0x0112
# Of the pixels as stored, to make them upright.
_TURNS = {
    1: ("upright", lambda pixels: pixels),
    2: ("mirrored", lambda pixels: pixels[:, ::-1]),
    3: ("upside down", lambda pixels: pixels[::-1, ::-1]),
    4: ("mirrored, upside down", lambda pixels: pixels[::-1]),
    5: ("mirrored, on its side", lambda pixels: pixels.swapaxes(0, 1)),
    6: ("on its side", lambda pixels: pixels[::-1].swapaxes(0, 1)),
    7: ("mirrored, on its side", lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1)),
    8: ("on its side", lambda pixels: pixels[:, ::-1].swapaxes(0, 1)),
}
_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error)


def jpeg_orientation(image: Image.Image) -> int:
    """What an open JPEG says; UPRIGHT if that is nothing or makes no sense."""
    try:
        return _sensible(image.getexif().get(_TAG))
    except _ERRORS:
        return UPRIGHT


def png_orientation(data: bytes) -> int:
    """What a PNG's chunk eXIf says. Pillow would decode all pixels to find it."""
    offset = 8
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"eXIf":
            exif = Image.Exif()
            try:
                exif.load(data[offset + 8 : offset + 8 + length])
                return _sensible(exif.get(_TAG))
            except _ERRORS:
                return UPRIGHT
        offset += 12 + length
    return UPRIGHT


def tiff_orientation(page: tifffile.TiffPage) -> int:
    """What a TIFF page says."""
    tag = page.tags.get(_TAG)
    return UPRIGHT if tag is None else _sensible(tag.value)


def _sensible(value: object) -> int:
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def describe(orientation: int) -> str:
    """In words."""
    return _TURNS[orientation][0]


def upright(pixels: NDArray, orientation: int) -> NDArray:
    """H x W x anything as it is to be seen, an array of its own."""
    return np.ascontiguousarray(_TURNS[orientation][1](pixels))
