"""Converts the JPEG 2000 images of a data directory to PNG, which reads several times faster.

In: every `.j2k` and `.jp2` in `train/` and `test/`. Out: a `.png` beside each. Files whose
PNG is there and not older are skipped; a broken file is named and the others are converted all the
same.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from geopose.cli import ArgumentParser, positive_int
from geopose.cores import usable_cores
from geopose.data.io import partial_files, read_rgb, write_png
from geopose.data.layout import (
    DATA_DIR_VARIABLE,
    JPEG2000_SUFFIXES,
    SPLIT_CSV,
    is_converted,
    resolve_data_dir,
)
from geopose.errors import GeoposeError, InputError, RunError


@dataclass
class Conversion:
    """What a run did: counts, and one message for each file that could not be converted."""

    converted: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)


def convert_directory(data_dir: Path, workers: int, progress: bool = True) -> Conversion:
    """Converts every .j2k and .jp2 of the train and test folders.

    Args:
        data_dir: the data directory.
        workers: number of threads.
        progress: show a progress bar on standard error.

    Returns:
        What was done; broken files are in `failures` and do not stop the others.

    Raises:
        InputError: there is no such file, or two of them would become one PNG.
    """
    folders = [data_dir / split for split in SPLIT_CSV if (data_dir / split).is_dir()]
    sources = sorted(
        path
        for folder in folders
        for path in folder.glob("[!.]*")
        if path.suffix.lower() in JPEG2000_SUFFIXES
    )
    if not sources:
        raise InputError(
            f"no .j2k or .jp2 files in {data_dir}/train or {data_dir}/test; check --data-dir"
        )
    for one, other in pairwise(sources):
        if one.with_suffix("") == other.with_suffix(""):
            raise InputError(f"{one} and {other.name} would become the same PNG; rename one")
    for folder in folders:
        for leftover in partial_files(folder, ".png"):
            leftover.unlink(missing_ok=True)
    waiting = [path for path in sources if not is_converted(path)]
    result = Conversion(skipped=len(sources) - len(waiting))
    outcomes = _convert_all(waiting, min(workers, len(waiting)))
    for failure in tqdm(
        outcomes, total=len(waiting), unit="image", disable=not (progress and waiting)
    ):
        if failure:
            result.failures.append(failure)
            tqdm.write(f"failed: {failure}", file=sys.stderr)
        else:
            result.converted += 1
    return result


def _convert_all(sources: Sequence[Path], workers: int) -> Iterator[str]:
    """Yields the message of each file as it is done, empty when all went well.

    Threads are enough: decoder and encoder release the interpreter's lock, and nothing outlives
    a killed run. On an interrupt the images in work are finished and the others left.
    """
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        for future in as_completed([pool.submit(_convert_file, source) for source in sources]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _convert_file(source: Path) -> str:
    """Converts one image; returns what is wrong with it, or an empty string."""
    try:
        write_png(source.with_suffix(".png"), read_rgb(source))
    except GeoposeError as error:
        return str(error)
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    """The convert_j2k.py command."""
    parser = ArgumentParser(
        prog="convert_j2k.py",
        description="Writes a PNG beside every .j2k and .jp2 image of a data directory, because "
        "PNG reads several times faster. Files converted before are skipped.",
    )
    parser.add_argument(
        "--data-dir",
        "--data_dir",
        metavar="DIR",
        help=f"directory that holds train/ and test/ (default: ${DATA_DIR_VARIABLE})",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=usable_cores(),
        metavar="N",
        help="images converted at a time (default: %(default)s, the cores available)",
    )
    arguments = parser.parse_args(argv)
    data_dir = resolve_data_dir(arguments.data_dir)
    result = convert_directory(data_dir, arguments.workers)
    sys.stdout.write(
        f"{result.converted} converted, {result.skipped} skipped (already there), "
        f"{len(result.failures)} failed in {data_dir}\n"
    )
    if result.failures:
        raise RunError(
            f"{len(result.failures)} images could not be converted, named above; "
            "replace them and run this again"
        )
