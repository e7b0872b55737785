"""Packs the predictions of a run into the archive that is handed in; read back before it counts.

Every file becomes a gzip member of its own, a tar header and the file, and all of them in a row are
an ordinary `.tar.gz`. So all cores can work on one archive, and the bytes depend on nothing but the
files. Height maps are deflated already: deflating a smooth one of 2048 x 2048 again made it 1 %
smaller and took 16 times as long as storing it, so only the small flow files are compressed.
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from geopose.errors import RunError
from geopose.files.atomic import atomic_path
from geopose.files.stamp import FileStamp
from geopose.system.cores import in_order

_STORED, _BEST = 0, 9  # gzip levels
_BLOCK = tarfile.BLOCKSIZE


def write_archive(path: Path, folder: Path, stamps: Mapping[str, FileStamp]) -> FileStamp:
    """Writes a `.tar.gz` with exactly these files flat at its root.

    The same files give the same bytes: members are sorted and carry no time, owner or mode of
    their own. The finished archive is read back and compared before it gets its name.

    Args:
        path: the archive.
        folder: where the files are; anything else in it stays out.
        stamps: the files' names and what they must hold.

    Returns:
        What the archive holds, for finding out later whether it is still the same.

    Raises:
        RunError: a file is missing or holds something else, or the archive does not read back.
    """
    names = sorted(stamps)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise RunError(
            f"{path}: not written, {len(missing)} of {len(names)} predictions are missing in "
            f"{folder}: {', '.join(missing[:5])}"
        )

    def member(name: str) -> bytes:
        content = (folder / name).read_bytes()
        if FileStamp.of_bytes(content) != stamps[name]:
            raise RunError(f"{folder / name}: changed since it was written; run again")
        return _gzip_member(name, content)

    with atomic_path(path) as partial:
        sizes: list[int] = []
        with partial.open("wb") as archive:
            sizes.extend(archive.write(block) for block in in_order(member, names))
            archive.write(gzip.compress(bytes(2 * _BLOCK), _BEST, mtime=0))  # the end of a tar file
        _check(partial, path, dict(zip(names, sizes, strict=True)), stamps)
        return FileStamp.of_file(partial)


def _gzip_member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)  # its defaults: mode 644, owner 0, time 0
    header.size = len(content)
    block = header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % _BLOCK)
    return gzip.compress(block, _STORED if name.endswith(".tif") else _BEST, mtime=0)


def _check(
    partial: Path, path: Path, sizes: Mapping[str, int], stamps: Mapping[str, FileStamp]
) -> None:
    """Reads the whole archive back and compares every member with what it should hold."""
    places: list[tuple[str, int, int]] = []
    offset = 0
    for name, size in sizes.items():
        places.append((name, offset, size))
        offset += size

    def check(place: tuple[str, int, int]) -> None:
        name, offset, size = place
        with partial.open("rb") as archive:
            archive.seek(offset)
            packed = archive.read(size)
        try:
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
                (header,) = tar
                content = tar.extractfile(header)
                found = None if content is None else FileStamp.of_bytes(content.read())
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
            raise RunError(f"{path}: does not read back as written ({error})") from error
        if header.name != name or found != stamps[name]:
            raise RunError(f"{path}: {name} does not read back as written")

    for _ in in_order(check, places):
        pass


def members_fingerprint(stamps: Mapping[str, FileStamp]) -> str:
    """A short name for a set of files and their content."""
    facts = [[name, stamp.size, stamp.crc32] for name, stamp in sorted(stamps.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    from geopose.cli import run_command
    from geopose.output.archive_check import main

    sys.exit(run_command(main))
