"""What a file's content is told by, so that a later run knows whether it is still the same."""

import zlib
from dataclasses import dataclass
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
