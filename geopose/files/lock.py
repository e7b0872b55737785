"""One run at a time in a folder: a second one would mix its files with those of the first."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from geopose.errors import InputError

NAME = ".lock"
_HELD: set[Path] = set()


@contextmanager
def locked(folder: Path, what: str, name: str = NAME) -> Iterator[None]:
    """Holds a folder, which is made if it is not there, while the block runs; see `FolderLock`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, what, name)
    try:
        yield
    finally:
        lock.give_up()


class FolderLock:
    """Keeps other runs out of a folder until it is given up or the process ends, however it does.

    A run on another machine is kept out where the shared file system passes locks on; where one
    knows no locks at all, nobody is.

    Args:
        folder: exists.
        what: the setting that names it, for the message.
        name: of the lock, where it is about one file of the folder.

    Raises:
        InputError: another run writes there.
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path, what: str = "submission_dir", name: str = NAME) -> None:
        self._path = folder / name
        self._busy = (
            f"{what}: another run is writing to {folder}; wait until it has ended, or choose "
            "another folder"
        )
        # The system does not keep a process out of what it has locked itself.
        if (key := self._path.resolve()) in _HELD:
            raise InputError(self._busy)
        self._lock()
        self._key = key
        _HELD.add(key)

    def _lock(self) -> None:
        while True:
            # Of POSIX, for those end with this process; others would live on in decoding processes.
            self._file = self._path.open("ab")
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    self._file.close()
                    raise InputError(self._busy) from error
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
        _HELD.discard(self._key)
        if self._file.closed:
            return
        with suppress(OSError):
            if self._is_current():
                self._path.unlink()
        self._file.close()
