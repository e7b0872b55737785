"""Packs the predictions of a run into the archive that is handed in; read back before it counts."""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from geopose.data.io import atomic_path
from geopose.errors import RunError

# Height maps are deflated already; a higher level costs time and gains next to nothing.
_GZIP_LEVEL = 1
_CHUNK = 1 << 20


def write_archive(path: Path, folder: Path, names: Sequence[str]) -> None:
    """Writes a `.tar.gz` with exactly these files flat at its root.

    The same files give the same bytes: members are sorted and carry no time, owner or mode of
    their own. The finished archive is read back and compared before it gets its name.

    Args:
        path: the archive.
        folder: where the files are; anything else in it stays out.
        names: file names, each once.

    Raises:
        RunError: a file is missing, or the archive does not read back as written.
    """
    names = sorted(names)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names or len(set(names)) != len(names):
        raise RunError(
            f"{path}: not written, {len(missing)} of {len(names)} predictions are missing in "
            f"{folder}: {', '.join(missing[:5])}"
        )
    with atomic_path(path) as partial:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive,
        ):
            for name in names:
                member = tarfile.TarInfo(name)  # its defaults: mode 644, owner 0, time 0
                with (folder / name).open("rb") as content:
                    member.size = (folder / name).stat().st_size
                    archive.addfile(member, content)
        _check(partial, path, folder, names)


def _check(partial: Path, path: Path, folder: Path, names: list[str]) -> None:
    """Reads the whole archive back and compares every member with its file."""
    found: list[str] = []
    try:
        with tarfile.open(partial, "r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None or _crc(content) != _crc_of_file(folder / member.name):
                    raise RunError(f"{path}: {member.name} does not read back as written")
                found.append(member.name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RunError(f"{path}: does not read back as written ({error})") from error
    if found != names:
        raise RunError(f"{path}: holds {len(found)} files instead of {len(names)}")


def _crc(content) -> int:  # type: ignore[no-untyped-def]
    checksum = 0
    while chunk := content.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _crc_of_file(path: Path) -> int:
    with path.open("rb") as content:
        return _crc(content)
