"""How a file says that its picture is to be turned before anybody looks at it.

In: what has been read of a file. Out: the EXIF or TIFF orientation, 1 (upright) to 8.
"""

import struct

import tifffile
from PIL import Image

UPRIGHT = 1
_TAG = 0x0112
_WORDS = {
    1: "upright",
    2: "mirrored",
    3: "upside down",
    4: "mirrored, upside down",
    5: "mirrored, on its side",
    6: "on its side",
    7: "mirrored, on its side",
    8: "on its side",
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
    return value if isinstance(value, int) and value in _WORDS else UPRIGHT


def describe(orientation: int) -> str:
    """In words."""
    return _WORDS[orientation]
