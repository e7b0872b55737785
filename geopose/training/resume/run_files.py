"""Files of a run that grow: TensorBoard's events and the list of skipped steps.

A checkpoint notes how long they are. A resumed run cuts them back to that, so that what it does
again is in them once.
"""

from collections.abc import Mapping
from pathlib import Path

from geopose.errors import InputError
from geopose.files.atomic import partial_files

TENSORBOARD = "tensorboard"
SKIPPED_FILE = "skipped_steps.csv"


def _growing(run_dir: Path) -> list[Path]:
    events = [path for path in (run_dir / TENSORBOARD).rglob("*") if path.is_file()]
    skipped = run_dir / SKIPPED_FILE
    return sorted([*events, skipped] if skipped.is_file() else events)


def file_sizes(run_dir: Path) -> dict[str, int]:
    """{path within the run directory: bytes} of the growing files; flush them first."""
    return {path.relative_to(run_dir).as_posix(): path.stat().st_size for path in _growing(run_dir)}


def check_own(run_dir: Path) -> None:
    """Raises InputError if a growing file is a link: it would be cut wherever it leads to."""
    for path in _growing(run_dir):
        if path.is_symlink():
            raise InputError(f"{path}: is a link; a run cuts its own files back, remove it")


def rewind(run_dir: Path, sizes: Mapping[str, int]) -> None:
    """Cuts the growing files back to these sizes, and removes those that are not named.

    What a killed process left half-written beside its checkpoints goes too.

    Raises:
        InputError: one of them is a link.
    """
    check_own(run_dir)
    for path in _growing(run_dir):
        size = sizes.get(path.relative_to(run_dir).as_posix())
        if size is None:
            path.unlink()
        elif path.stat().st_size > size:
            with path.open("r+b") as file:
                file.truncate(size)
    for folder in [run_dir, *run_dir.glob("checkpoints_*")]:
        for suffix in (".pth", ".csv", ".yaml"):
            for path in partial_files(folder, suffix):
                path.unlink(missing_ok=True)
