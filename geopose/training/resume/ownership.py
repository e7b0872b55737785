"""Which process may write to a run directory: rank 0 of one training holds it until it ends."""

from pathlib import Path

from geopose.distributed import is_main
from geopose.files.lock import FolderLock


class Ownership:
    """The lock of a run directory, on rank 0; the other ranks hold nothing."""

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    def take(self, run_dir: Path) -> None:
        """Keeps other trainings out of a directory that is there.

        Raises:
            InputError: another training is going on in it.
            OSError: nobody can write there.
        """
        if is_main() and self._lock is None:
            self._lock = FolderLock(run_dir, "experiment")

    def close(self) -> None:
        """Lets others in."""
        if self._lock is not None:
            self._lock.give_up()
            self._lock = None
