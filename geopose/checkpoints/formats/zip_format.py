"""Files of torch since 1.6 are zip archives: whether one is whole, and how it may be read.

torch maps their members without a look at how they are stored, and compares no checksums: what is
compressed would be read as numbers, and a flipped bit as a weight. Both are looked at here, before
torch reads anything.
"""

import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from geopose.system.cores import in_order

MOST_PICKLE_BYTES = 8 << 20  # 40 times what a network of 1,000 tensors takes; read in Python
_MOST_TABLE_BYTES = 16 << 20
_MOST_EXPANSION = 8  # weights shrink to 0.9, those of 16 bits kept in 32 to a half
_LEAST_EXPANDED = 64 << 20
_CHUNK = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END_64_BYTES, _LOCATOR_BYTES = 56, 20
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1

# A file is checked once in a process: 900 MB that the system has in memory take 1.2 s on one core
# and 0.8 s on two of a Xeon; their SHA-256, for comparison, 1.9 s.
_CHECKED: dict[tuple[int, ...], bool] = {}


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, or what is left of one."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4" or zipfile.is_zipfile(file)


def check_zip(path: Path) -> bool:
    """Whether the members of an archive lie in it as they are, so that they can be mapped.

    Args:
        path: of a zip archive.

    Raises:
        zipfile.BadZipFile: says what is wrong with it: cut, damaged, or larger than it can be.
        OSError: it cannot be read.
    """
    stat = path.stat()
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if state not in _CHECKED:
        with path.open("rb") as file:
            _check_end(file, stat.st_size)
            with zipfile.ZipFile(file) as archive:
                _CHECKED[state] = _check_members(archive, file, stat.st_size)
    return _CHECKED[state]


def _check_end(file: IO[bytes], size: int) -> None:
    """Nothing may follow the table, so that everybody finds the same one; it may not be huge."""
    file.seek(max(0, size - _END.size - _LOCATOR_BYTES - _END_64_BYTES))
    tail = file.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or end[:4] != b"PK\5\6":
        raise zipfile.BadZipFile("there is something behind the end of its table")
    table = _END.unpack(end)[5]
    if table == 0xFFFFFFFF and tail[:4] == b"PK\6\6":
        (table,) = struct.unpack_from("<Q", tail, 40)
    if table > _MOST_TABLE_BYTES:
        raise zipfile.BadZipFile("refused, its table of contents is larger than any network's")


def _check_members(archive: zipfile.ZipFile, file: IO[bytes], size: int) -> bool:
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise zipfile.BadZipFile("refused, it holds two members of one name")
    _check_sizes(members, size)
    for _ in in_order(lambda member: _check_compressed(archive, member), _packed(members)):
        pass
    stored = [member for member in members if member.compress_type == zipfile.ZIP_STORED]
    if stored:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for _ in in_order(lambda member: _check_stored(content, member), stored):
                pass
    return len(stored) == len(members)


def _packed(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    return [member for member in members if member.compress_type != zipfile.ZIP_STORED]


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
    """What the table promises, before anything is unpacked."""
    for member in members:
        name = os.path.basename(member.filename)[:40]
        if member.flag_bits & _ENCRYPTED:
            raise zipfile.BadZipFile(f"{name!r} in it is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(
                f"{name!r} in it is compressed in a way that torch does not read"
            )
        if name.endswith(".pkl") and member.file_size > MOST_PICKLE_BYTES:
            raise zipfile.BadZipFile(
                f"refused, {name} in it unpacks to {member.file_size / 1e6:.0f} MB, more than "
                "any network takes"
            )
    stored = sum(m.file_size for m in members if m.compress_type == zipfile.ZIP_STORED)
    unpacked = sum(member.file_size for member in _packed(members))
    if stored > size or sum(member.compress_size for member in members) > size:
        raise zipfile.BadZipFile("its members are larger than the file")
    if unpacked > max(_LEAST_EXPANDED, _MOST_EXPANSION * size):
        raise zipfile.BadZipFile(f"refused, it unpacks from {size:,} to {unpacked:,} bytes")


def _check_stored(content: mmap.mmap, member: zipfile.ZipInfo) -> None:
    """The bytes that will be mapped, where the member's own header says that they begin."""
    header = content[member.header_offset : member.header_offset + _LOCAL.size]
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("a member's header is damaged")
    start = member.header_offset + _LOCAL.size + sum(_LOCAL.unpack(header)[-2:])
    end = start + member.file_size
    if member.compress_size != member.file_size or end > len(content):
        raise zipfile.BadZipFile("a member does not lie where the table says")
    checksum = 0
    with memoryview(content) as view:
        for first in range(start, end, _CHUNK):
            with view[first : min(first + _CHUNK, end)] as part:
                checksum = zlib.crc32(part, checksum)
    if checksum != member.CRC:
        raise _changed(member)


def _check_compressed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Unpacks it once, as torch does not compare the checksum; zipfile does, and stops where the
    table said that it ends."""
    length = 0
    try:
        with archive.open(member) as packed:
            while chunk := packed.read(_CHUNK):
                length += len(chunk)
    except (zlib.error, EOFError, zipfile.BadZipFile) as error:
        raise _changed(member) from error
    if length != member.file_size:
        raise _changed(member)


def _changed(member: zipfile.ZipInfo) -> zipfile.BadZipFile:
    name = os.path.basename(member.filename)[:40]
    return zipfile.BadZipFile(
        f"{name!r} in it has changed since it was written, its checksum shows it"
    )
