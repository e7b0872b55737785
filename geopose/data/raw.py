"""Raw images: numpy's `.npy` files, of which a window is read without the rest.

In: uint8 RGB or uint16 heights in centimetres. Out: the file, and later any window of it. Rows are
stored one after the other, uncompressed: of the layouts that benchmarks/input.py and
docs/benchmarks.md compare, the quickest to read a crop from, be the file in memory or on the disk.

Windows are read and not mapped: a file that shrinks while it is mapped would kill the process, and
mapped pages look like memory that is never given back.
"""

import math
import os
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from geopose.data.decoding import read_bytes
from geopose.errors import InputError, one_line
from geopose.files.atomic import atomic_path
from geopose.files.ordinary import check_ordinary
from geopose.files.origin import Origin

RAW_SUFFIX = ".npy"
RAW_MAGIC = b"\x93NUMPY"
_HEADER_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)
_REMEDY = "delete it or run convert_j2k.py --format raw again"


@dataclass(frozen=True)
class RawFile:
    """A raw file whose header and length have been checked; `raw[rows, columns]` reads a window.

    `shape` is H x W x 3 (uint8 RGB) or H x W (uint16 centimetres).
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # bytes before the first pixel

    @property
    def kind(self) -> str:
        """RGB or heights."""
        return raw_kind(self.dtype, self.shape)

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray:
        """The pixels of some rows and columns, in an array of its own.

        Raises:
            InputError: the file has become shorter or unreadable.
        """
        top, bottom, _ = window[0].indices(self.shape[0])
        left, right, _ = window[1].indices(self.shape[1])
        pixel = math.prod(self.shape[2:]) * self.dtype.itemsize
        pixels = np.empty((max(bottom - top, 0), max(right - left, 0), *self.shape[2:]), self.dtype)
        if pixels.size == 0:
            return pixels
        row_bytes, stride = pixels.shape[1] * pixel, self.shape[1] * pixel
        start = self.offset + top * stride + left * pixel
        if row_bytes == stride:  # whole rows lie next to each other
            row_bytes = pixels.nbytes
        memory = pixels.reshape(-1).view(np.uint8).data
        with _readable(self.path) as file:
            for number in range(pixels.nbytes // row_bytes):
                part = memory[number * row_bytes : (number + 1) * row_bytes]
                _fill(file, part, start + number * stride, self.path)
        return pixels

    def read(self) -> NDArray:
        """All pixels."""
        return self[:, :]


def raw_kind(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """What pixels of a type and shape are: RGB, heights, or "" = nothing that is stored raw."""
    if min(shape, default=0) < 1:
        return ""
    if dtype == np.uint8 and len(shape) == 3 and shape[2] == 3:
        return "RGB"
    return "heights" if dtype == np.dtype("<u2") and len(shape) == 2 else ""


def _fill(file: int, part: memoryview, position: int, path: Path) -> None:
    while part:
        count = os.preadv(file, [part], position)
        if count == 0:
            raise InputError(f"{path}: truncated; {_REMEDY}")
        part, position = part[count:], position + count


@contextmanager
def _readable(path: Path) -> Iterator[int]:
    try:
        check_ordinary(path)
        file = os.open(path, os.O_RDONLY)
        try:
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error


def open_raw(path: Path | str) -> RawFile:
    """Checks a raw file's header and that it holds exactly the pixels that it promises.

    Raises:
        InputError: missing, no such file, of another kind, or not of the right length.
    """
    path = Path(path)
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, column_major, dtype = read(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except _HEADER_ERRORS as error:
        raise InputError(
            f"{path}: no sound .npy file ({one_line(error, 100)}); {_REMEDY}"
        ) from error
    if column_major or not raw_kind(dtype, shape):
        raise InputError(
            f"{path}: it holds {dtype} of shape {shape}, expected uint8 RGB or uint16 heights; "
            f"{_REMEDY}"
        )
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise InputError(f"{path}: {size} bytes, {expected} expected; {_REMEDY}")
    return RawFile(path, shape, dtype, offset)


def write_raw(path: Path | str, pixels: NDArray, origin: Origin | None = None) -> None:
    """Writes H x W x 3 uint8 RGB or H x W uint16 centimetres, of which windows can be read.

    Args:
        path: the .npy file.
        pixels: what it will hold.
        origin: what they were made of, noted in the header's padding as a comment.

    Raises:
        RunError: the file cannot be written.
    """
    if not raw_kind(pixels.dtype, pixels.shape):
        raise ValueError(f"expected uint8 RGB or uint16 heights, got {pixels.shape} {pixels.dtype}")
    with atomic_path(path) as partial, partial.open("w+b") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(pixels), version=(1, 0))
        if origin is not None:
            _write_mark(file, origin.mark, file.tell() - pixels.nbytes)


def _write_mark(file: BinaryIO, mark: bytes, offset: int) -> None:
    """Puts a comment at the end of a header, whose padding of 37 and more spaces has room for it.

    One that is too long for an absurd size is left out; the file is then told by its time.
    """
    file.seek(offset - 1 - len(mark))
    if file.read(len(mark)) == b" " * len(mark):
        file.seek(offset - 1 - len(mark))
        file.write(mark)


def is_raw(path: Path) -> bool:
    """Whether a file's content begins as a raw file's does."""
    return read_bytes(path, len(RAW_MAGIC)) == RAW_MAGIC


def open_raw_of(path: Path, kind: str) -> RawFile:
    """A raw file that must hold this `kind`; InputError as for `open_raw`."""
    raw = open_raw(path)
    if raw.kind != kind:
        raise InputError(f"{path}: it holds {raw.kind}, expected {kind}; check its name")
    return raw
