"""Files of torch before 0.1.10: a tar archive of storages, of tensors on them, and of a pickle.

Read without running anything in them and without writing anything: members are read in place, and
every pickle by torch's weights-only unpickler, which takes what `pickles.ALLOWED` lists.
"""

import math
import pickle
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor
from torch._weights_only_unpickler import Unpickler

# By their storages; others came later than this format.
_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8,
}  # fmt: skip
_BY_DTYPE = set(_TYPES.values())
_MOST_DIMENSIONS = 64


class _Storage(NamedTuple):
    """A flat tensor; views of storages are slices of it."""

    values: Tensor


class _Member:
    """One member of the archive, read from its start on; never more than it has."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        if not 0 <= size <= self._left:
            raise pickle.UnpicklingError("the archive ends too early")
        self._left -= size
        data = self._file.read(size)
        if len(data) != size:
            raise pickle.UnpicklingError("the archive ends too early")
        return data

    def readline(self) -> bytes:
        """Up to the next line break."""
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    def unpickled(self, objects: dict[int, Any] | None = None) -> Any:
        """The next pickle in it; `objects` by the keys that stand for them."""
        unpickler = Unpickler(self, encoding="utf-8")
        if objects is not None:
            unpickler.persistent_load = lambda key: objects[_whole(key)]  # type: ignore[method-assign]
        return unpickler.load()

    def numbers(self, form: str) -> tuple[int, ...]:
        """Little-endian numbers in the form of `struct`."""
        return struct.unpack(f"<{form}", self.read(struct.calcsize(f"<{form}")))


def is_tar(path: Path) -> bool:
    """Whether a file is an uncompressed tar archive, with something in it."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.next() is not None
    except (tarfile.TarError, OSError, ValueError):
        return False


def read_tar(path: Path) -> Any:
    """The pickled content, with its tensors; call it under torch's `safe_globals`.

    Raises:
        pickle.UnpicklingError, tarfile.TarError, OSError, ...: damaged, or holds something else.
    """
    with tarfile.open(path, "r:") as archive:
        size = path.stat().st_size
        with _member(archive, "storages", size) as member:
            storages = _storages(member)
        with _member(archive, "tensors", size) as member:
            tensors = _tensors(member, storages)
        with _member(archive, "pickle", size) as member:
            return member.unpickled({**storages, **tensors})


@contextmanager
def _member(archive: tarfile.TarFile, name: str, archive_size: int) -> Iterator[_Member]:
    found = [member for member in archive.getmembers() if member.name in (name, f"./{name}")]
    if len(found) != 1 or not found[0].isreg() or found[0].issparse():
        raise pickle.UnpicklingError(f"the archive has not one plain member {name}")
    if found[0].offset_data + found[0].size > archive_size:
        raise pickle.UnpicklingError("the archive ends too early")
    file = archive.extractfile(found[0])
    assert file is not None  # it is a plain member
    with file:
        yield _Member(file, found[0].size)


def _storages(member: _Member) -> dict[int, Any]:
    storages: dict[int, Any] = {}
    for _ in range(_whole(member.unpickled())):
        key, _location, kind = member.unpickled()
        dtype = getattr(kind, "dtype", None)
        if dtype not in _BY_DTYPE:
            raise pickle.UnpicklingError("a storage of a type that this format does not have")
        (count,) = member.numbers("q")
        data = member.read(_whole(count) * dtype.itemsize)
        values = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0)
        storages[_whole(key)] = _Storage(values.to(dtype))
    for key, root, offset, count in member.unpickled():
        values = storages[_whole(root)].values
        if _whole(offset) + _whole(count) > len(values):
            raise pickle.UnpicklingError("a part of a storage reaches beyond it")
        storages[_whole(key)] = _Storage(values[offset : offset + count])
    return storages


def _tensors(member: _Member, storages: dict[int, Any]) -> dict[int, Tensor]:
    tensors: dict[int, Tensor] = {}
    for _ in range(_whole(member.unpickled())):
        key, storage, _kind = member.unpickled()
        (dimensions, _) = member.numbers("ii")
        if not 0 <= dimensions <= _MOST_DIMENSIONS:
            raise pickle.UnpicklingError(f"a tensor of {dimensions} dimensions")
        size = member.numbers(f"{dimensions}q")
        stride = member.numbers(f"{dimensions}q")
        (offset,) = member.numbers("q")
        values = storages[_whole(storage)].values
        _check_inside(size, stride, offset, len(values))
        tensors[_whole(key)] = values.as_strided(size, stride, offset)
    return tensors


def _check_inside(size: tuple[int, ...], stride: tuple[int, ...], offset: int, length: int) -> None:
    """Refuses a tensor that is not a part of its storage, or that says a number twice."""
    if min((*size, *stride, offset)) < 0:
        raise pickle.UnpicklingError("a tensor with negative sizes, strides or offset")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > length or (count and last >= length) or offset > length:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")


def _whole(value: Any) -> int:
    """A key or a count."""
    if type(value) is not int or value < 0:
        raise pickle.UnpicklingError("a number in the archive is none")
    return value
