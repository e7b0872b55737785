"""Reads and writes 8-bit RGB images: PNG, JPEG 2000, TIFF, JPEG and raw, told by content.

In: paths. Out: H x W x 3 uint8, channels R, G, B. A file that is not what it should be raises
InputError naming the file; nothing is ever patched or partly read.
"""

import struct
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from geopose.data import jpeg2000
from geopose.data.decoding import (
    DECODE_ERRORS,
    JPEG_MAGIC,
    MAX_J2K_PIXELS,
    MAX_PIXELS,
    NOT_AN_IMAGE,
    PNG_MAGIC,
    TIFF_MAGICS,
    WrongKind,
    check_pixels,
    count,
    only_page,
    read_bytes,
    read_page,
)
from geopose.data.formats.jpeg import check_jpeg
from geopose.data.formats.nodata import (
    Unknown,
    declares,
    has_alpha,
    transparent_pixels,
    unknown_pixels,
)
from geopose.data.formats.orientation import (
    UPRIGHT,
    describe,
    jpeg_orientation,
    png_orientation,
    tiff_orientation,
)
from geopose.data.formats.png import check_chunks, with_text
from geopose.data.raw import RawFile, is_raw, open_raw_of
from geopose.errors import InputError, one_line
from geopose.files.atomic import atomic_path
from geopose.files.origin import Origin

_PNG_TYPES = {0: "1 channel", 2: "RGB", 3: "a palette", 4: "2 channels", 6: "4 channels"}
_HEADER_BYTES = 1 << 16
_MAKE_RGB = "make it an 8-bit RGB image with three channels"


class RgbImage(NamedTuple):
    """An image as read.

    Attributes:
        rgb: H x W x 3 uint8, channels R, G, B, as stored.
        unknown: H x W, where the file declares that there is no data; None = nowhere.
        orientation: how the file wants it turned, 1 = not at all (`formats/orientation.py`).
    """

    rgb: NDArray[np.uint8]
    unknown: Unknown | None = None
    orientation: int = UPRIGHT


def read_rgb(path: Path | str) -> NDArray[np.uint8]:
    """Reads an 8-bit RGB image without an alpha channel; otherwise as `read_image`.

    Returns:
        H x W x 3 uint8, channels R, G, B.
    """
    return _upright(Path(path), _read(Path(path), alpha=False)).rgb


def read_image(path: Path | str) -> RgbImage:
    """Reads an 8-bit RGB image: PNG, JPEG 2000 (.j2k, .jp2), TIFF, JPEG or raw, told by content.

    Returns:
        The pixels and where the file says that they mean nothing.

    Raises:
        InputError: missing, broken or truncated file, not 8-bit with three channels (a TIFF may
            have alpha as well), or it wants to be turned: nobody knows whether what belongs to
            the image, its truth or the place of its prediction, was turned.
    """
    return _upright(Path(path), _read(Path(path), alpha=True))


def unknown_in(path: Path) -> Unknown | None:
    """Where an image file declares no data; reads no pixels of files that declare nothing.

    Raises:
        InputError: as for `read_image`.
    """
    data = read_bytes(path, _HEADER_BYTES)
    if data.startswith(PNG_MAGIC):
        return read_image(path).unknown if b"tRNS" in data else None
    if not data.startswith(TIFF_MAGICS):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            declared = declares(tiff, only_page(tiff), path)
    except (WrongKind, *DECODE_ERRORS):
        declared = True  # reading it says what is wrong
    return read_image(path).unknown if declared else None


def _upright(path: Path, image: RgbImage) -> RgbImage:
    if image.orientation != UPRIGHT:
        raise InputError(
            f"{path}: its orientation tag says {image.orientation} ({describe(image.orientation)}),"
            " and heights and flow go by the pixels as stored; turn the pixels or remove the tag"
        )
    return image


def _read(path: Path, alpha: bool) -> RgbImage:
    if is_raw(path):
        return RgbImage(open_raw_of(path, "RGB").read())
    data = read_bytes(path)
    try:
        if data.startswith(PNG_MAGIC):
            image = _decode_png(data)
        elif data.startswith((jpeg2000.CODESTREAM_MAGIC, jpeg2000.JP2_MAGIC)):
            image = RgbImage(_decode_jpeg2000(data))
        elif data.startswith(TIFF_MAGICS):
            image = _read_rgb_tiff(path, alpha)
        elif data.startswith(JPEG_MAGIC):
            image = _decode_jpeg(data)
        else:
            raise InputError(f"{path}: {NOT_AN_IMAGE}")
    except WrongKind as kind:
        raise InputError(f"{path}: it has {kind}; {_MAKE_RGB}") from None
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken image ({one_line(error, 120)}); get a good copy"
        ) from error
    rgb = image.rgb
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise InputError(f"{path}: it has shape {rgb.shape}, {rgb.dtype}; {_MAKE_RGB}")
    return image


def open_image(path: Path, source: Path) -> tuple[RawFile | NDArray[np.uint8], Unknown | None]:
    """An image of which windows are taken, and where it has no data.

    Args:
        path: a raw file, read in part, or any other, decoded here.
        source: what it may have been made of; a raw file cannot say what it does not know.

    Returns:
        H x W x 3 uint8 RGB, of which `pixels[rows, columns]` and `shape` work in either case.

    Raises:
        InputError: as for `read_image`; also later, when a window cannot be read.
    """
    if not is_raw(path):
        image = read_image(path)
        return image.rgb, image.unknown
    unknown = unknown_in(source) if path != source and source.is_file() else None
    return open_raw_of(path, "RGB"), unknown


def write_png(path: Path | str, rgb: NDArray[np.uint8], origin: Origin | None = None) -> None:
    """Writes H x W x 3 uint8 RGB as PNG; `origin` is what it was made of, noted in a text chunk.

    Of eight settings tried on a 2048 x 2048 mosaic of an aerial photograph, level 1 with run
    lengths over the SUB filter was the quickest to read back (43 ms; level 6 with adaptive filters
    76 ms), the quickest to write (91 ms; 596 ms) and the smallest.
    """
    _check_rgb(rgb)
    data = imagecodecs.png_encode(
        np.ascontiguousarray(rgb),
        level=1,
        strategy=imagecodecs.PNG.STRATEGY.RLE,
        filter=imagecodecs.PNG.FILTER.SUB,
    )
    if origin is not None:
        data = with_text(bytes(data), b"geopose", origin.mark)
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_j2k(
    path: Path | str, rgb: NDArray[np.uint8], lossless: bool = False, ratio: float = 10
) -> None:
    """Writes H x W x 3 uint8 RGB as a raw JPEG 2000 code stream.

    Args:
        path: the .j2k file.
        rgb: the image.
        lossless: reversible coding; `ratio` does not count then.
        ratio: compression ratio of lossy coding, 10 = a tenth of the raw bytes.
    """
    _check_rgb(rgb)
    options = {} if lossless else {"quality_mode": "rates", "quality_layers": [ratio]}
    with atomic_path(path) as partial:
        Image.fromarray(rgb).save(
            partial, format="JPEG2000", no_jp2=True, irreversible=not lossless, mct=1, **options
        )


def _decode_png(data: bytes) -> RgbImage:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour != 2:
        raise WrongKind(_PNG_TYPES.get(colour, f"PNG colour type {colour}"))
    if bits != 8:
        raise WrongKind(f"{bits}-bit samples")
    check_pixels(height, width, MAX_PIXELS)
    if height * width * 3 > 1100 * len(data):  # zlib cannot compress further than 1032 : 1
        raise ValueError(f"too short for {width} x {height} pixels")
    check_chunks(data)
    rgb = imagecodecs.spng_decode(data)
    rgb = rgb[..., :3] if rgb.ndim == 3 and rgb.shape[2] == 4 else rgb  # tRNS adds a channel
    return RgbImage(rgb, transparent_pixels(data, rgb), png_orientation(data))


def _decode_jpeg2000(data: bytes) -> NDArray[np.uint8]:
    header = jpeg2000.read_header(data)
    if problem := header.problem():
        raise WrongKind(problem)
    check_pixels(header.height, header.width, MAX_J2K_PIXELS)
    jpeg2000.check_complete(data, header)
    rgb = imagecodecs.jpeg2k_decode(data, numthreads=1)
    if rgb.shape[:2] != (header.height, header.width):
        raise ValueError(f"decoded to {rgb.shape}")
    return rgb


def _decode_jpeg(data: bytes) -> RgbImage:
    with Image.open(BytesIO(data), formats=["JPEG"]) as image:
        if image.mode != "RGB":
            raise WrongKind(f"{count(len(image.getbands()), 'channel')} ({image.mode})")
        check_pixels(image.height, image.width, MAX_PIXELS)
        rgb, orientation = np.asarray(image), jpeg_orientation(image)
    check_jpeg(data)
    return RgbImage(rgb, None, orientation)


def _read_rgb_tiff(path: Path, alpha: bool) -> RgbImage:
    with tifffile.TiffFile(path) as tiff:
        page = only_page(tiff)
        if page.samplesperpixel != 3 and not (alpha and has_alpha(page, 3)):
            raise WrongKind(count(page.samplesperpixel, "channel"))
        if page.photometric not in (2, 6) or (page.photometric == 6 and page.compression != 7):
            raise WrongKind(f"{getattr(page.photometric, 'name', page.photometric)} colours")
        if page.bitspersample != 8 or page.dtype != np.uint8:
            raise WrongKind(f"{page.bitspersample}-bit {page.dtype} samples")
        array = read_page(page)
        if page.planarconfig == 2:
            array = np.moveaxis(array, 0, -1)
        unknown = unknown_pixels(tiff, page, path, array)
        orientation = tiff_orientation(page)
    return RgbImage(np.ascontiguousarray(array[..., :3]), unknown, orientation)


def _check_rgb(rgb: NDArray[np.uint8]) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected H x W x 3 uint8, got {rgb.shape} {rgb.dtype}")
