"""One run at a time in a folder: a second one would mix its files with those of the first."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from geopose.errors import InputError

NAME = ".lock"


class FolderLock:
    """Keeps other runs out of a folder until it is given up or the process ends, however it does.

    A run on another machine is kept out where the shared file system passes locks on; where one
    knows no locks at all, nobody is.

    Args:
        folder: exists.

    Raises:
        InputError: another run writes there.
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        while True:
            # Of POSIX, for those end with this process; others would live on in decoding processes.
            self._file = self._path.open("ab")
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    self._file.close()
                    raise InputError(
                        f"submission_dir: another run is writing to {folder}; wait until it has "
                        "ended, or choose another folder"
                    ) from error
            if self._is_current():
                return
            self._file.close()  # of a run that has just given it up

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def give_up(self) -> None:
        """Lets other runs in. A name that cannot be removed any more keeps nobody out."""
        with suppress(OSError):
            if self._is_current():
                self._path.unlink()
        self._file.close()
