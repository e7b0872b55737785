"""Whether something can be written where the user wants it, found out before the work is done."""

import tempfile
from pathlib import Path

from geopose.errors import InputError


def check_folder_target(folder: Path, what: str) -> None:
    """Finds out whether a folder can be made, or is there and takes new files; leaves no trace.

    Args:
        folder: need not exist, nor its parents.
        what: the option or setting that names it, for the message.

    Raises:
        InputError: it is a file, below a file, not writable, or its name is impossible.
    """
    try:
        nearest = folder
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise InputError(f"{what}: cannot write to {folder}: {nearest} is not a directory")
        # Asking for permissions is not enough: root has them all, even where the disk has not.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"{what}: cannot write to {folder}: {error.strerror}") from error


def check_file_target(path: Path, what: str) -> None:
    """The same for a file, whose folder may have to be made.

    Raises:
        InputError: it is a directory, or its folder cannot be written to.
    """
    check_folder_target(path.parent, what)
    try:
        if path.is_dir():
            raise InputError(f"{what}: {path} is a directory, name a file")
    except OSError as error:
        raise InputError(f"{what}: cannot write {path}: {error.strerror}") from error
