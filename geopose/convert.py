"""Converts the images of a data directory to what reads faster: PNG, or raw files read in part.

In: every `.j2k` and `.jp2` in `train/` and `test/`; for raw also `*_RGB` images of other kinds, and
the height maps. Out: a `.png` or `.npy` beside each, which says what it was made of. Files
converted before, of what the source still is, are skipped; a broken file is named and the others
are converted all the same.
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from geopose.cli import ArgumentParser, positive_int
from geopose.data.decoding import MAX_PIXELS, check_pixels
from geopose.data.heights import read_agl_cm
from geopose.data.image_size import image_size
from geopose.data.layout import (
    IMAGE_SUFFIXES,
    JPEG2000_SUFFIXES,
    ImageRecord,
    agl_name,
    picture_file,
    resolve_data_dir,
)
from geopose.data.layouts.splits import CHALLENGE, SPLITS, add_data_options, list_images
from geopose.data.raw import RAW_SUFFIX, write_raw
from geopose.data.rgb import read_image, write_png
from geopose.errors import InputError, RunError
from geopose.files.atomic import partial_files
from geopose.files.lock import locked
from geopose.files.origin import Origin, is_up_to_date, read_origin
from geopose.system.cores import usable_cores
from geopose.system.progress import progress_bar

logger = logging.getLogger(__name__)

FORMATS = {"png": ".png", "raw": RAW_SUFFIX}
_MOST_COMPRESSED = 1100  # what deflate can do; beyond, a header is broken or there is one colour
_RAW_BYTES = {"rgb": 3, "agl": 2}  # a pixel


@dataclass(frozen=True)
class _Task:
    """One file to make: of an image ("rgb") or of a height map ("agl")."""

    source: Path
    target: Path
    kind: str

    def done(self) -> bool:
        """Whether the file is there, up to date, and (if raw) whole and of the right size."""
        if not is_up_to_date(self.target, self.source):
            return False
        if self.target.suffix != RAW_SUFFIX:
            return True
        try:
            return image_size(self.target) == image_size(self.readable)
        except InputError:
            return False

    @property
    def readable(self) -> Path:
        """The file to read: the PNG of a JPEG 2000 image where there is one."""
        if self.kind == "agl" or self.target.suffix == ".png":
            return self.source
        return picture_file(self.source)

    def raw_bytes(self) -> int:
        """Bytes of the raw file.

        0 for a broken source, or one that claims more pixels than are ever read: it will be named
        when it is read, and must not keep the others from being converted.
        """
        try:
            height, width = image_size(self.readable)
            check_pixels(height, width, MAX_PIXELS)
            length = self.readable.stat().st_size
        except (InputError, ValueError, OSError):
            return 0
        count = height * width * _RAW_BYTES[self.kind]
        return count if count <= _MOST_COMPRESSED * length else 0

    def run(self) -> str:
        """Converts; returns what is wrong with the source, or an empty string."""
        try:
            origin = Origin.of_file(self.source)
            if self.kind == "agl":
                agl_cm = read_agl_cm(self.source)
                origin.check_unchanged(self.source)
                write_raw(self.target, agl_cm, origin)
            else:
                rgb = read_image(self.readable).rgb
                origin.check_unchanged(self.source)
                write = write_raw if self.target.suffix == RAW_SUFFIX else write_png
                write(self.target, rgb, origin)
        except InputError as error:
            return str(error)
        return ""


@dataclass
class Conversion:
    """What a run did: counts of files, and one message for each that could not be converted."""

    converted: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)


def convert_directory(
    data_dir: Path,
    workers: int,
    progress: bool = True,
    format_name: str = "png",
    layout: str = CHALLENGE,
) -> Conversion:
    """Converts the images of a data directory, and for raw the height maps too.

    Args:
        data_dir: the data directory.
        workers: number of threads.
        progress: show a progress bar on standard error.
        format_name: "png" or "raw".
        layout: of the data directory.

    Returns:
        What was done; broken files are in `failures` and do not stop the others.

    Raises:
        InputError: there is no image to convert, or two of them would become one file.
        RunError: no room for the raw files, or a file cannot be written.
    """
    suffix = FORMATS[format_name]
    tasks = _all_tasks(data_dir, suffix, layout)
    if not tasks:
        kinds = ".j2k or .jp2" if suffix == ".png" else "image"
        raise InputError(
            f"no {kinds} files in the train or test images of {data_dir}; check --data-dir"
        )
    for one, other in pairwise(sorted(tasks, key=lambda task: (task.target, task.source))):
        if one.target == other.target:
            raise InputError(
                f"{one.source} and {other.source.name} would become the same "
                f"{suffix[1:].upper()} file; rename one"
            )
    for folder in {task.target.parent for task in tasks}:
        for leftover in partial_files(folder, suffix):
            leftover.unlink(missing_ok=True)
    waiting = [task for task in tasks if not task.done()]
    if suffix == RAW_SUFFIX:
        _check_room(data_dir, waiting)
    _mention_unmarked(sorted({task.target for task in tasks} - {task.target for task in waiting}))
    result = Conversion(skipped=len(tasks) - len(waiting))
    with ExitStack() as locks:
        for folder in sorted({task.target.parent for task in waiting}):
            locks.enter_context(locked(folder, "--data-dir"))
        _convert_waiting(waiting, workers, progress, result)
    return result


def _convert_waiting(
    waiting: Sequence[_Task], workers: int, progress: bool, result: Conversion
) -> None:
    """Converts files and counts them in `result`."""
    outcomes = _convert_all(waiting, min(workers, len(waiting)))
    for failure in progress_bar(
        outcomes, total=len(waiting), unit="file", disable=not (progress and waiting)
    ):
        if failure:
            result.failures.append(failure)
            tqdm.write(f"failed: {failure}", file=sys.stderr)
        else:
            result.converted += 1


def _all_tasks(data_dir: Path, suffix: str, layout: str) -> list[_Task]:
    """The files to make of a data directory."""
    if layout == CHALLENGE:  # its folders say enough: its CSV files need not be there yet
        folders = [data_dir / split for split in SPLITS if (data_dir / split).is_dir()]
        return [task for folder in folders for task in _tasks(folder, suffix)]
    records = [record for split in SPLITS for record in list_images(data_dir, split, layout)]
    return [task for record in records for task in _tasks_of(record, suffix)]


def _tasks_of(record: ImageRecord, suffix: str) -> list[_Task]:
    """The files to make of an image that a layout lists."""
    is_jpeg2000 = record.rgb.suffix.lower() in JPEG2000_SUFFIXES
    sources = [(record.rgb, "rgb")] if suffix == RAW_SUFFIX or is_jpeg2000 else []
    if suffix == RAW_SUFFIX and record.agl is not None:
        sources.append((record.agl, "agl"))
    return [_Task(path, path.with_suffix(suffix), kind) for path, kind in sources]


def _tasks(folder: Path, suffix: str) -> list[_Task]:
    """The files to make of what a folder holds, by name."""
    pictures = sorted(
        path for path in folder.glob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES
    )
    sources = [path for path in pictures if path.suffix.lower() in JPEG2000_SUFFIXES]
    if suffix == ".png":
        return [_Task(path, path.with_suffix(suffix), "rgb") for path in sources]
    stems = {path.with_suffix("") for path in sources}  # their PNGs are no images of their own
    sources += [
        path
        for path in pictures
        if path.stem.endswith("_RGB") and path.with_suffix("") not in stems
    ]
    tasks = [_Task(path, path.with_suffix(suffix), "rgb") for path in sources]
    heights = [folder / agl_name(path.name) for path in sources]
    return tasks + [
        _Task(path, path.with_suffix(suffix), "agl") for path in heights if path.is_file()
    ]


def _mention_unmarked(kept: Sequence[Path]) -> None:
    """Says that some files are taken on trust; to convert them anew unasked could take hours."""
    unmarked = [path for path in kept if read_origin(path) is None]
    if unmarked:
        logger.info(
            "%d files do not say what they were made of and are kept because they are not older, "
            "the first is %s; delete them to convert them anew",
            len(unmarked),
            unmarked[0],
        )


def _check_room(data_dir: Path, tasks: Sequence[_Task]) -> None:
    """Says how much room raw files take, and refuses where there is less.

    Raises:
        RunError: the disk is too full.
    """
    needed = sum(task.raw_bytes() for task in tasks)
    free = shutil.disk_usage(data_dir).free
    if needed > free:
        raise RunError(
            f"{data_dir}: raw files take {_gigabytes(needed)} more, {_gigabytes(free)} are free; "
            "make room or use --format png"
        )
    if tasks:
        logger.info(
            "%d raw files to write: %s, %s are free",
            len(tasks),
            _gigabytes(needed),
            _gigabytes(free),
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _convert_all(tasks: Sequence[_Task], workers: int) -> Iterator[str]:
    """Yields the message of each file as it is done, empty when all went well.

    Threads are enough: decoder and encoder release the interpreter's lock, and nothing outlives
    a killed run. On an interrupt, or when nothing more can be written, the files in work are
    finished and the others left.
    """
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        for future in as_completed([pool.submit(task.run) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def main(argv: Sequence[str] | None = None) -> None:
    """The convert_j2k.py command."""
    parser = ArgumentParser(
        description="Writes a PNG beside every .j2k and .jp2 image of a data directory, because "
        "PNG reads several times faster; or raw files of images and heights, of which training "
        "reads only the crop. Files converted before are skipped.",
    )
    add_data_options(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="png",
        help="png, or raw: .npy files, 5 bytes a pixel (21 MB for an image of 2048 x 2048 with "
        "heights), for training whose GPU waits for data (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=usable_cores(),
        metavar="N",
        help="files converted at a time (default: %(default)s, the cores available)",
    )
    arguments = parser.parse_args(argv)
    data_dir = resolve_data_dir(arguments.data_dir)
    result = convert_directory(
        data_dir, arguments.workers, format_name=arguments.format, layout=arguments.layout
    )
    sys.stdout.write(
        f"{result.converted} converted, {result.skipped} skipped (already there), "
        f"{len(result.failures)} failed in {data_dir}\n"
    )
    if result.failures:
        raise RunError(
            f"{len(result.failures)} files could not be converted, named above; "
            "replace them and run this again"
        )
