"""What all readers of pixels share: telling files apart, refusing broken ones, TIFF pages."""

import logging
import math
import struct
import zlib
from pathlib import Path

import tifffile
from numpy.typing import NDArray
from PIL import Image

from geopose.data.formats.nodata import is_mask
from geopose.errors import InputError
from geopose.files.ordinary import check_ordinary

# A header can claim any size. Beyond these it is refused instead of exhausting the memory;
# OpenJPEG needs 12 bytes a pixel while decoding, hence its lower limit.
MAX_PIXELS = 2**30
MAX_J2K_PIXELS = 2**28

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
JPEG_MAGIC = b"\xff\xd8\xff"
NOT_AN_IMAGE = "not a PNG, JPEG 2000, TIFF or JPEG file; check the file"
# imagecodecs raises RuntimeErrors; tifffile and Pillow raise whatever a broken field leads to.
DECODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Image.DecompressionBombError,
    struct.error,
    tifffile.TiffFileError,
    zlib.error,
)

# Its complaints about a broken file would come on top of the one line of our InputError.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class WrongKind(Exception):
    """A sound image of another kind than wanted; the message says what it is."""


def read_bytes(path: Path, count: int = -1) -> bytes:
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; check the path") from error


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_pixels(height: int, width: int, limit: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"{width} x {height} pixels")
    if height * width > limit:
        raise ValueError(f"{width} x {height} pixels, the limit is {limit}")


def only_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The one image of a TIFF file; overviews and masks beside it do not count."""
    tiff.pages.useframes = False
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    pages = [page for page in pages if not (page.subfiletype & 0b1 or is_mask(page))]
    if len(pages) != 1:
        raise WrongKind(count(len(pages), "page"))
    return pages[0]


def read_page(page: tifffile.TiffPage) -> NDArray:
    """Decodes one page after making sure that the file holds all of it.

    tifffile fills missing strips with zeros, which would read as ground height or black.
    """
    check_pixels(page.imagelength, page.imagewidth, MAX_PIXELS)
    if page.imagedepth != 1:
        raise WrongKind(f"{page.imagedepth} layers")
    expected = math.prod(page.chunked)
    pairs = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    end = page.parent.filehandle.size
    if len(pairs) < expected or any(n <= 0 or at <= 0 or at + n > end for at, n in pairs):
        raise ValueError("truncated, parts of the image are missing")
    return page.asarray(maxworkers=1)
