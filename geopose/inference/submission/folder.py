"""The folder of a submission: what lies where in it, made and cleaned for a run."""

from dataclasses import dataclass
from pathlib import Path

from geopose.errors import InputError
from geopose.files.atomic import partial_files
from geopose.files.lock import FolderLock
from geopose.files.writable import check_folder_target


@dataclass(frozen=True)
class SubmissionFolder:
    """Paths in `submission_dir`."""

    root: Path

    @property
    def predictions(self) -> Path:
        """Heights and flow of every image."""
        return self.root / "submission"

    @property
    def pictures(self) -> Path:
        """What `--visualize` draws."""
        return self.root / "visualization"

    @property
    def archive(self) -> Path:
        """What is handed in."""
        return self.root / "submission_compressed.tar.gz"

    def check(self, visualize: bool) -> None:
        """Finds out whether the folders can be made, without making them.

        Raises:
            InputError: they cannot.
        """
        check_folder_target(self.root, "submission_dir")
        for folder in (self.predictions, self.pictures) if visualize else (self.predictions,):
            check_folder_target(folder, "submission_dir")
        if self.archive.is_dir():
            raise InputError(f"submission_dir: {self.archive} is a directory; remove it")

    def make(self, visualize: bool, keep_archive: bool) -> FolderLock:
        """Makes the folders, keeps other runs out of them and removes what killed processes left.

        Args:
            visualize: make the pictures' folder as well.
            keep_archive: an archive must never stand beside predictions that are not in it, so it
                goes before any of them does, unless it is known to fit.

        Raises:
            InputError: the folders cannot be made, or another run is writing to them.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.root)
            self.predictions.mkdir(exist_ok=True)
            if visualize:
                self.pictures.mkdir(exist_ok=True)
            for folder in (self.root, self.predictions, self.pictures):
                for path in partial_files(folder, ".*"):
                    path.unlink()
            if not keep_archive:
                self.archive.unlink(missing_ok=True)
            return lock
        except OSError as error:
            raise InputError(
                f"submission_dir: cannot write to {self.root}: {error.strerror}"
            ) from error
