"""Command: finds training images of the same place and writes the table of places."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from geopose.cli import ArgumentParser, positive_int, run_command
from geopose.data.layout import ImageRecord, resolve_data_dir
from geopose.data.layouts.splits import add_data_options, read_split
from geopose.data.places.search import Rule, find_links, places_of
from geopose.data.places.table import PLACES_CSV, write_places
from geopose.errors import InputError
from geopose.files.writable import check_file_target
from geopose.system.cores import usable_cores
from geopose.system.progress import progress_bar

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `python -m geopose.data.places`."""
    rule = Rule()
    parser = ArgumentParser(
        prog="python -m geopose.data.places",
        description="Finds training images that show the same place, by their heights moved onto "
        "the ground, and writes the table for dataset.fold_split=place.",
    )
    add_data_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"table (DIR/{PLACES_CSV})")
    parser.add_argument(
        "--least", type=float, default=rule.least, help="likeness of heights that makes one place, "
        "0 to 1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--equal", type=float, default=rule.equal, help="share of what is built that must have "
        "equal heights, 0 to 1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=float, default=rule.overlap, help="share of the smaller image that both "
        "must show, 0 to 1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--turns", type=positive_int, default=rule.turns, help="directions to try, over the full "
        "circle; 1 = the same side is up in all images, and as many times faster (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=positive_int, default=usable_cores(), help="threads (%(default)s, the "
        "cores available)",
    )  # fmt: skip
    return parser


def _bar(steps: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    return progress_bar(steps, total=total, desc=title, unit="image")


def report(records: Sequence[ImageRecord], places: dict[str, str]) -> str:
    """How many places there are in each city, and the largest of all."""
    lines = []
    for city in sorted({record.city for record in records}):
        own = [record.image_id for record in records if record.city == city]
        lines.append(f"{city}: {len({places[name] for name in own})} places, {len(own)} images")
    place, count = Counter(places.values()).most_common(1)[0]
    total = len(set(places.values()))
    lines.append(f"all: {total} places, {len(records)} images; the largest, {place}, has {count}")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; see `--help`.

    Raises:
        InputError: bad arguments or data.
        RunError: the table cannot be written.
    """
    args = build_parser().parse_args(argv)
    for name in ("least", "equal", "overlap"):
        if not 0 < getattr(args, name) <= 1:
            raise InputError(f"--{name} is {getattr(args, name)}, expected more than 0 and up to 1")
    data_dir = resolve_data_dir(args.data_dir)
    out = args.out or data_dir / PLACES_CSV
    check_file_target(out, "--out")
    records = read_split(data_dir, "train", args.layout)
    rule = Rule(args.least, args.equal, args.overlap, args.turns)
    places = places_of(records, find_links(records, rule, _bar, args.workers))
    write_places(out, places)
    sys.stdout.write(report(records, places))
    logger.info("table of places: %s", out)


if __name__ == "__main__":
    sys.exit(run_command(main))
