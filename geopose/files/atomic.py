"""Writes beside, then renames: a file appears whole or not at all.

In: the path that is wanted. Out: a hidden path to write to, which becomes it when all went well.
"""

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from geopose.errors import RunError, StorageError

_PARTIAL = ".partial-"
_STEM_BYTES = 60


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
    return path.with_name(f".{stem}{_PARTIAL}{secrets.token_hex(4)}{path.suffix}")


def partial_files(folder: Path, suffix: str) -> list[Path]:
    """What killed processes left behind of `atomic_path` in a folder."""
    return sorted(folder.glob(f".*{_PARTIAL}{'[0-9a-f]' * 8}{suffix}"))
