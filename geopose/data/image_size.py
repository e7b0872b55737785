"""An image or height file in, its size out, from the header alone."""

import struct
from pathlib import Path

import tifffile
from PIL import Image

from geopose.data import jpeg2000
from geopose.data.decoding import (
    DECODE_ERRORS,
    JPEG_MAGIC,
    NOT_AN_IMAGE,
    PNG_MAGIC,
    TIFF_MAGICS,
    read_bytes,
)
from geopose.data.raw import is_raw, open_raw
from geopose.errors import InputError, one_line

_HEADER_BYTES = 1 << 16


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file from its header alone; of a raw file, its length counts too.

    Raises:
        InputError: missing or broken file.
    """
    path = Path(path)
    if is_raw(path):
        height, width = open_raw(path).shape[:2]
        return height, width
    data = read_bytes(path, _HEADER_BYTES)
    try:
        if data.startswith(PNG_MAGIC):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith((jpeg2000.CODESTREAM_MAGIC, jpeg2000.JP2_MAGIC)):
            header = jpeg2000.read_header(data)
            height, width = header.height, header.width
        elif data.startswith(TIFF_MAGICS):
            with tifffile.TiffFile(path) as tiff:
                height, width = tiff.pages.first.imagelength, tiff.pages.first.imagewidth
        elif data.startswith(JPEG_MAGIC):
            with Image.open(path, formats=["JPEG"]) as image:
                width, height = image.size
        else:
            raise InputError(f"{path}: {NOT_AN_IMAGE}")
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken image ({one_line(error, 120)}); get a good copy"
        ) from error
    return height, width
