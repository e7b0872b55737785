"""Writes beside, then renames: a file appears whole or not at all.

In: the path that is wanted. Out: a hidden path to write to, which becomes it when all went well.
"""

import errno
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from geopose.errors import RunError, StorageError

_PARTIAL = ".partial-"
_STEM_BYTES = 60
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TOKEN = re.compile(r"\.partial-(?:([0-9a-f]{8})([0-9a-f]{1,8})-)?[0-9a-f]{8}(?:\.|$)")
_LONG_AGO_S = 24 * 3600.0


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a hidden path in the same folder, renamed to `path` when the block succeeds.

    On an error or interrupt the temporary file is removed and `path` stays as it was.

    Raises:
        RunError: the file cannot be written; a StorageError if only its name is too long.
    """
    path = Path(path)
    partial = _hidden(path)
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # finds out whether the name is possible, before the work is done
        yield partial
        partial.replace(path)
    except OSError as error:
        kind = StorageError if error.errno == errno.ENAMETOOLONG else RunError
        raise kind(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is not there: its name is impossible, or its folder has gone
            partial.unlink(missing_ok=True)


@contextmanager
def scratch_path(path: Path | str) -> Iterator[Path]:
    """Gives a hidden path in the folder of `path` for work on the way; removed in the end."""
    scratch = _hidden(Path(path))
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    # Of a long name only the beginning, or the hidden one would be too long where the name is not.
    stem = path.stem.encode()[:_STEM_BYTES].decode(errors="ignore")
    token = f"{_HOST}{os.getpid():x}-{secrets.token_hex(4)}"  # tells who may still be writing
    return path.with_name(f".{stem}{_PARTIAL}{token}{path.suffix}")


def partial_files(folder: Path, suffix: str) -> list[Path]:
    """What killed processes left behind of `atomic_path` in a folder; what others write stays out.

    Args:
        folder: need not exist.
        suffix: of the wanted files, or `.*`.
    """
    found = sorted(folder.glob(f".*{_PARTIAL}*{suffix}"))
    return [path for path in found if _is_left(path)]


def _is_left(path: Path) -> bool:
    """Whether nobody writes a partial file any more, by the process that its name tells."""
    token = _TOKEN.search(path.name)
    if token is None:
        return False
    host, process = token.groups()
    if host is None:  # of versions that did not tell
        return True
    if host == _HOST:
        return not _is_alive(int(process, 16))
    with suppress(OSError):  # of another machine, which cannot be asked
        return time.time() - path.stat().st_mtime > _LONG_AGO_S
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
