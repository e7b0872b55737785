"""What a file's content is told by, so that a later run knows whether it is still the same."""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from geopose.files.ordinary import check_ordinary

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileStamp:
    """Length in bytes and CRC-32."""

    size: int
    crc32: int

    @staticmethod
    def of_bytes(content: bytes) -> "FileStamp":
        """The stamp of bytes in memory."""
        return FileStamp(len(content), zlib.crc32(content))

    @staticmethod
    def of_file(path: Path) -> "FileStamp":
        """The stamp of a file, read from its first to its last byte; OSError if that fails."""
        check_ordinary(path)
        size = checksum = 0
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK):
                size += len(chunk)
                checksum = zlib.crc32(chunk, checksum)
        return FileStamp(size, checksum)


@dataclass(frozen=True)
class SourceStamp:
    """The image file that was predicted: size, CRC-32 of its bytes, two times of change in ns.

    Anybody can set the time of a file's content; that of its entry is the system's own. 0: unknown.
    """

    size: int
    mtime_ns: int
    crc32: int
    ctime_ns: int = 0

    @staticmethod
    def of_file(path: Path) -> "SourceStamp":
        """The stamp of a file, read in full; OSError if that fails."""
        stat = path.stat()
        content = FileStamp.of_file(path)
        return SourceStamp(content.size, stat.st_mtime_ns, content.crc32, stat.st_ctime_ns)

    def fits(self, path: Path) -> bool:
        """Whether a file is still the same; copied or touched it is, if its bytes are."""
        stat = path.stat()
        if stat.st_size != self.size:
            return False
        same_times = (stat.st_mtime_ns, stat.st_ctime_ns) == (self.mtime_ns, self.ctime_ns)
        return same_times or FileStamp.of_file(path).crc32 == self.crc32

    def with_times_of(self, path: Path) -> "SourceStamp":
        """For a file that fits: its times of now, so that it need not be read again."""
        stat = path.stat()
        return replace(self, mtime_ns=stat.st_mtime_ns, ctime_ns=stat.st_ctime_ns)
