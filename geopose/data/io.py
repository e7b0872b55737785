"""Reads and writes every kind of file; the only place that knows on-disk units (cm, px/cm, 65535).

In: paths. Out: uint8 RGB arrays, heights in metres with NaN for no data, pixels per metre, radians,
and the reverse. A file that is not what it should be raises InputError naming the file; nothing is
ever patched or partly read. Files appear complete or not at all (`atomic_path`).
"""

import json
import logging
import math
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from geopose.data import jpeg2000
from geopose.data.raw import RAW_MAGIC, RawFile, open_raw, raw_kind
from geopose.errors import InputError, RunError, StorageError, one_line
from geopose.geometry import wrap_angle

NODATA_CM = 65535
MAX_AGL_M = 655.34
CM_PER_M = 100.0
_ROUNDING_M = 0.005

# A header can claim any size. Beyond these it is refused instead of exhausting the memory;
# OpenJPEG needs 12 bytes a pixel while decoding, hence its lower limit.
MAX_PIXELS = 2**30
MAX_J2K_PIXELS = 2**28

_PARTIAL = ".partial-"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_TYPES = {0: "1 channel", 2: "RGB", 3: "a palette", 4: "2 channels", 6: "4 channels"}
_TIFF_MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_JPEG_MAGIC = b"\xff\xd8\xff"
_NOT_AN_IMAGE = "not a PNG, JPEG 2000, TIFF or JPEG file; check the file"
_HEADER_BYTES = 1 << 16
_MAKE_RGB = "make it an 8-bit RGB image with three channels"
# imagecodecs raises RuntimeErrors; tifffile and Pillow raise whatever a broken field leads to.
_DECODE_ERRORS = (
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


# ---------------------------------------------------------------- writing beside, then renaming


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a hidden path in the same folder, renamed to `path` when the block succeeds.

    On an error or interrupt the temporary file is removed and `path` stays as it was.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}{_PARTIAL}{secrets.token_hex(4)}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def partial_files(folder: Path, suffix: str) -> list[Path]:
    """What killed processes left behind of `atomic_path` in a folder."""
    return sorted(folder.glob(f".*{_PARTIAL}{'[0-9a-f]' * 8}{suffix}"))


# ---------------------------------------------------------------- RGB images


def read_rgb(path: Path | str) -> NDArray[np.uint8]:
    """Reads an 8-bit RGB image: PNG, JPEG 2000 (.j2k, .jp2), TIFF, JPEG or raw, told by content.

    Returns:
        H x W x 3 uint8, channels R, G, B.

    Raises:
        InputError: missing, broken or truncated file, or not 8-bit with three channels.
    """
    path = Path(path)
    if _is_raw(path):
        return _open_raw(path, "RGB").read()
    data = _read_bytes(path)
    try:
        if data.startswith(_PNG_MAGIC):
            rgb = _decode_png(data)
        elif data.startswith((jpeg2000.CODESTREAM_MAGIC, jpeg2000.JP2_MAGIC)):
            rgb = _decode_jpeg2000(data)
        elif data.startswith(_TIFF_MAGICS):
            rgb = _read_rgb_tiff(path)
        elif data.startswith(_JPEG_MAGIC):
            rgb = _decode_jpeg(path)
        else:
            raise InputError(f"{path}: {_NOT_AN_IMAGE}")
    except _WrongKind as kind:
        raise InputError(f"{path}: it has {kind}; {_MAKE_RGB}") from None
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken image ({one_line(error, 120)}); get a good copy"
        ) from error
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise InputError(f"{path}: it has shape {rgb.shape}, {rgb.dtype}; {_MAKE_RGB}")
    return rgb


def open_rgb(path: Path | str) -> RawFile | NDArray[np.uint8]:
    """An image of which windows are taken: a raw file, read in part, or any other, decoded here.

    Returns:
        H x W x 3 uint8 RGB; `pixels[rows, columns]` and `shape` work on both.

    Raises:
        InputError: as for `read_rgb`; also later, when a window cannot be read.
    """
    path = Path(path)
    return _open_raw(path, "RGB") if _is_raw(path) else read_rgb(path)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file from its header alone; of a raw file, its length counts too.

    Raises:
        InputError: missing or broken file.
    """
    path = Path(path)
    if _is_raw(path):
        height, width = open_raw(path).shape[:2]
        return height, width
    data = _read_bytes(path, _HEADER_BYTES)
    try:
        if data.startswith(_PNG_MAGIC):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith((jpeg2000.CODESTREAM_MAGIC, jpeg2000.JP2_MAGIC)):
            header = jpeg2000.read_header(data)
            height, width = header.height, header.width
        elif data.startswith(_TIFF_MAGICS):
            with tifffile.TiffFile(path) as tiff:
                height, width = tiff.pages.first.imagelength, tiff.pages.first.imagewidth
        elif data.startswith(_JPEG_MAGIC):
            with Image.open(path, formats=["JPEG"]) as image:
                width, height = image.size
        else:
            raise InputError(f"{path}: {_NOT_AN_IMAGE}")
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken image ({one_line(error, 120)}); get a good copy"
        ) from error
    return height, width


def write_png(path: Path | str, rgb: NDArray[np.uint8]) -> None:
    """Writes H x W x 3 uint8 RGB as PNG.

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


class _WrongKind(Exception):
    """A sound image that is not 8-bit RGB; the message says what it is."""


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour != 2:
        raise _WrongKind(_PNG_TYPES.get(colour, f"PNG colour type {colour}"))
    if bits != 8:
        raise _WrongKind(f"{bits}-bit samples")
    _check_pixels(height, width, MAX_PIXELS)
    if height * width * 3 > 1100 * len(data):  # zlib cannot compress further than 1032 : 1
        raise ValueError(f"too short for {width} x {height} pixels")
    offset, kind = 8, b""
    while kind != b"IEND":
        if offset + 12 > len(data):
            raise ValueError("truncated")
        length, kind = struct.unpack_from(">I4s", data, offset)
        offset += 12 + length
    if offset > len(data):
        raise ValueError("truncated")
    rgb = imagecodecs.spng_decode(data)
    return rgb[..., :3] if rgb.ndim == 3 and rgb.shape[2] == 4 else rgb  # tRNS adds a channel


def _decode_jpeg2000(data: bytes) -> NDArray[np.uint8]:
    header = jpeg2000.read_header(data)
    if problem := header.problem():
        raise _WrongKind(problem)
    _check_pixels(header.height, header.width, MAX_J2K_PIXELS)
    jpeg2000.check_complete(data, header)
    rgb = imagecodecs.jpeg2k_decode(data, numthreads=1)
    if rgb.shape[:2] != (header.height, header.width):
        raise ValueError(f"decoded to {rgb.shape}")
    return rgb


def _decode_jpeg(path: Path) -> NDArray[np.uint8]:
    with Image.open(path, formats=["JPEG"]) as image:
        if image.mode != "RGB":
            raise _WrongKind(f"{_count(len(image.getbands()), 'channel')} ({image.mode})")
        _check_pixels(image.height, image.width, MAX_PIXELS)
        return np.asarray(image)


def _read_rgb_tiff(path: Path) -> NDArray[np.uint8]:
    with tifffile.TiffFile(path) as tiff:
        page = _only_page(tiff)
        if page.samplesperpixel != 3:
            raise _WrongKind(_count(page.samplesperpixel, "channel"))
        if page.photometric not in (2, 6) or (page.photometric == 6 and page.compression != 7):
            raise _WrongKind(f"{getattr(page.photometric, 'name', page.photometric)} colours")
        if page.bitspersample != 8 or page.dtype != np.uint8:
            raise _WrongKind(f"{page.bitspersample}-bit {page.dtype} samples")
        array = _read_page(page)
    if page.planarconfig == 2:
        array = np.moveaxis(array, 0, -1)
    return np.ascontiguousarray(array)


def _check_rgb(rgb: NDArray[np.uint8]) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected H x W x 3 uint8, got {rgb.shape} {rgb.dtype}")


# ---------------------------------------------------------------- TIFF


def _only_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The one image of a TIFF file; overviews and masks beside it do not count."""
    tiff.pages.useframes = False
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    pages = [page for page in pages if not page.subfiletype & 0b101]
    if len(pages) != 1:
        raise _WrongKind(_count(len(pages), "page"))
    return pages[0]


def _read_page(page: tifffile.TiffPage) -> NDArray:
    """Decodes one page after making sure that the file holds all of it.

    tifffile fills missing strips with zeros, which would read as ground height or black.
    """
    _check_pixels(page.imagelength, page.imagewidth, MAX_PIXELS)
    if page.imagedepth != 1:
        raise _WrongKind(f"{page.imagedepth} layers")
    expected = math.prod(page.chunked)
    pairs = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    end = page.parent.filehandle.size
    if len(pairs) < expected or any(n <= 0 or at <= 0 or at + n > end for at, n in pairs):
        raise ValueError("truncated, parts of the image are missing")
    return page.asarray(maxworkers=1)


def read_agl_m(path: Path | str) -> NDArray[np.float32]:
    """Reads a height map: one-page uint16 TIFF, or raw, in centimetres, 65535 = no data.

    Returns:
        H x W float32, metres above ground, NaN where there is no data.

    Raises:
        InputError: missing or broken file, or not a single-channel 16-bit unsigned TIFF.
    """
    return _metres(read_agl_cm(path))


def open_agl_m(path: Path | str) -> "RawHeights | NDArray[np.float32]":
    """A height map of which windows are taken: a raw file, read in part, or a TIFF, read here.

    Returns:
        H x W float32 metres, NaN = no data; `heights[rows, columns]` and `shape` work on both.

    Raises:
        InputError: as for `read_agl_m`; also later, when a window cannot be read.
    """
    path = Path(path)
    return RawHeights(_open_raw(path, "heights")) if _is_raw(path) else read_agl_m(path)


class RawHeights:
    """The heights of a raw file in metres, NaN = no data, converted as they are read."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self.shape = raw.shape

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[np.float32]:
        """Some rows and columns; an array of its own."""
        return _metres(self._raw[window])


def _metres(agl_cm: NDArray[np.uint16]) -> NDArray[np.float32]:
    agl_m = agl_cm.astype(np.float32) / np.float32(CM_PER_M)
    agl_m[agl_cm == NODATA_CM] = np.nan
    return agl_m


def read_agl_cm(path: Path | str) -> NDArray[np.uint16]:
    """Reads a height map as stored: H x W uint16 centimetres, 65535 = no data.

    Raises:
        InputError: as for `read_agl_m`.
    """
    path = Path(path)
    if _is_raw(path):
        return _open_raw(path, "heights").read()
    if not _read_bytes(path, 8).startswith(_TIFF_MAGICS):
        raise InputError(f"{path}: not a TIFF file; heights are one-channel uint16 TIFF in cm")
    try:
        with tifffile.TiffFile(path) as tiff:
            page = _only_page(tiff)
            if page.samplesperpixel != 1:
                raise _WrongKind(_count(page.samplesperpixel, "channel"))
            if page.bitspersample != 16 or page.dtype != np.uint16:
                raise _WrongKind(f"{page.bitspersample}-bit {page.dtype} samples")
            if page.photometric != 1:
                raise _WrongKind(f"{getattr(page.photometric, 'name', page.photometric)} values")
            array = _read_page(page)
    except _WrongKind as kind:
        raise InputError(f"{path}: it has {kind}; heights are one-channel uint16 in cm") from None
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{path}: broken TIFF ({one_line(error, 120)}); get a good copy"
        ) from error
    if array.shape != (page.imagelength, page.imagewidth):
        array = array.reshape(page.imagelength, page.imagewidth)
    return np.asarray(array, dtype=np.uint16)


def fits_cm(agl_m: Any) -> Any:
    """Where heights in metres fit uint16 centimetres: False for NaN and beyond 0..655.34.

    Takes and returns NumPy arrays or tensors, so that a GPU decides by the same rule.
    """
    return (agl_m >= -_ROUNDING_M) & (agl_m <= MAX_AGL_M + _ROUNDING_M)


def round_cm(agl_m: Any) -> Any:
    """Whole centimetres of heights in metres, double precision, for which `fits_cm` holds."""
    return (agl_m * CM_PER_M).round().clip(0, NODATA_CM - 1)


def misfit_message(count: int, height_m: float, row: int, column: int) -> str:
    """What to say about heights for which `fits_cm` does not hold, the first of them described."""
    return (
        f"{count} heights cannot be stored in cm, the first is {height_m} m at row {row}, "
        f"column {column} (0..{MAX_AGL_M} m can)"
    )


def write_agl_cm(path: Path | str, agl_m: NDArray[np.floating], allow_nodata: bool = False) -> None:
    """Writes a height map in metres as one-page uint16 TIFF in centimetres, Adobe deflate.

    Args:
        path: the .tif file.
        agl_m: H x W heights in metres, 0..655.34.
        allow_nodata: write NaN as 65535; otherwise NaN is refused.

    Raises:
        StorageError: a height that uint16 centimetres cannot hold. The file is not written then.
    """
    if agl_m.ndim != 2 or agl_m.size == 0:
        raise RunError(f"{path}: a height map of shape {agl_m.shape} cannot be written")
    unknown = np.isnan(agl_m) & allow_nodata
    bad = ~(fits_cm(agl_m) | unknown)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        height_m = agl_m[row, column]
        raise StorageError(f"{path}: {misfit_message(int(bad.sum()), height_m, row, column)}")
    agl_cm = round_cm(np.where(unknown, 0.0, agl_m.astype(np.float64))).astype(np.uint16)
    agl_cm[unknown] = NODATA_CM
    write_cm(path, agl_cm)


def write_cm(path: Path | str, agl_cm: NDArray[np.uint16]) -> None:
    """Writes a height map as it is stored: H x W uint16 centimetres, one-page TIFF, Adobe deflate.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial,
            agl_cm,
            compression="adobe_deflate",
            compressionargs={"level": 1},
            predictor=2,
            photometric="minisblack",
            metadata=None,
            software=False,
        )


# ---------------------------------------------------------------- raw


def write_raw(path: Path | str, pixels: NDArray) -> None:
    """Writes H x W x 3 uint8 RGB or H x W uint16 centimetres, of which windows can be read.

    Raises:
        RunError: the file cannot be written.
    """
    if not raw_kind(pixels.dtype, pixels.shape):
        raise ValueError(f"expected uint8 RGB or uint16 heights, got {pixels.shape} {pixels.dtype}")
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(pixels), version=(1, 0))


def _is_raw(path: Path) -> bool:
    return _read_bytes(path, len(RAW_MAGIC)) == RAW_MAGIC


def _open_raw(path: Path, kind: str) -> RawFile:
    raw = open_raw(path)
    if raw.kind != kind:
        raise InputError(f"{path}: it holds {raw.kind}, expected {kind}; check its name")
    return raw


# ---------------------------------------------------------------- vertical flow


def read_vflow(path: Path | str) -> tuple[float, float]:
    """Reads a flow file, `{"scale": px per cm, "angle": radians}`.

    Returns:
        (scale in pixels per metre, >= 0; angle in radians in [0, 2 pi)).

    Raises:
        InputError: missing file, not such JSON, or not finite numbers.
    """
    path = Path(path)
    try:
        content = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({one_line(error, 120)})") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: expected {{"scale": px per cm, "angle": radians}}')
    scale_px_per_cm = _number(path, content, "scale")
    angle_rad = _number(path, content, "angle")
    scale_px_per_m = scale_px_per_cm * CM_PER_M
    if scale_px_per_cm < 0 or math.isinf(scale_px_per_m):
        raise InputError(f"{path}: scale is {scale_px_per_cm}, expected px per cm, 0 or more")
    return scale_px_per_m, wrap_angle(angle_rad)


def write_vflow(path: Path | str, scale_px_per_m: float, angle_rad: float) -> None:
    """Writes scale (given in pixels per metre) and angle (radians) as px per cm and radians.

    Raises:
        StorageError: not finite, or a negative scale.
    """
    scale_px_per_m, angle_rad = float(scale_px_per_m), float(angle_rad)
    if not (math.isfinite(scale_px_per_m) and math.isfinite(angle_rad)) or scale_px_per_m < 0:
        raise StorageError(
            f"{path}: scale {scale_px_per_m} px/m, angle {angle_rad} cannot be written"
        )
    content = {"scale": scale_px_per_m / CM_PER_M, "angle": wrap_angle(angle_rad)}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content))


def _number(path: Path, content: dict, key: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{path}: {key!r} is {one_line(value, 120)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{path}: {key!r} is {number}, expected a finite number")
    return number


# ---------------------------------------------------------------- shared


def _read_bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; check the path") from error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _check_pixels(height: int, width: int, limit: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"{width} x {height} pixels")
    if height * width > limit:
        raise ValueError(f"{width} x {height} pixels, the limit is {limit}")
