"""Writes beside, then renames: a file appears whole or not at all.

In: the path that is wanted. Out: a hidden path to write to, which becomes it when all went well.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geopose.errors import RunError

_PARTIAL = ".partial-"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a hidden path in the same folder, renamed to `path` when the block succeeds.

    On an error or interrupt the temporary file is removed and `path` stays as it was.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    partial = _hidden(path)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
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
    return path.with_name(f".{path.stem}{_PARTIAL}{secrets.token_hex(4)}{path.suffix}")


def partial_files(folder: Path, suffix: str) -> list[Path]:
    """What killed processes left behind of `atomic_path` in a folder."""
    return sorted(folder.glob(f".*{_PARTIAL}{'[0-9a-f]' * 8}{suffix}"))
