"""Data for a comparison: one city held out whole, and a share of the scenes of the others.

In: a data directory in the challenge's layout. Out: a directory beside the runs that lists the
training part alone and links to the images, for `train.py dataset.data_dir=`; and the records of
both held-out parts.
"""

import csv
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geopose.data.folds import PLACE, split_fold
from geopose.data.layout import ImageRecord
from geopose.data.layouts.challenge import METADATA_CSV, SPLIT_CSV
from geopose.data.layouts.splits import read_split
from geopose.data.places.table import places_file, read_places
from geopose.errors import InputError
from geopose.files.atomic import atomic_path

SAME, NEW = "same cities", "new city"
PARTS = 5  # a fifth of the scenes of the cities that are trained on is held out


@dataclass(frozen=True)
class Holdout:
    """What a seed trains on (`data_dir`) and is scored on (`splits`)."""

    city: str
    data_dir: Path
    train: int  # scenes that are learnt from
    num_folds: int  # as many as leave about a scene of each city for validation
    splits: dict[str, list[ImageRecord]]

    @property
    def mark(self) -> str:
        """Tells data sets apart: a sum of all ids and gsds, part by part."""
        ids = [
            [(record.image_id, record.gsd_m) for record in part] for part in self.splits.values()
        ]
        return f"{zlib.crc32(repr((self.train, ids)).encode()):08x}"


def hold_out(data_dir: Path, seed: int, out: Path) -> Holdout:
    """City seed mod cities, and fold seed mod PARTS of the other cities, in a directory in `out`.

    Where the data directory has a table of places, no place is on both sides.

    Raises:
        InputError: fewer than two cities, or too few scenes for PARTS.
    """
    records = read_split(data_dir, "train")
    cities = sorted({record.city for record in records})
    if len(cities) < 2:
        raise InputError(f"{data_dir}: a city is held out whole, so there must be two or more")
    city, fold = cities[seed % len(cities)], seed % PARTS
    others = [record for record in records if record.city != city]
    table = places_file(data_dir, None)
    if table.is_file():
        train, same = split_fold(others, fold, PLACE, PARTS, read_places(table, others))
    else:
        train, same = split_fold(others, fold, num_folds=PARTS)
    listed = out / f"without_{city}_fold{fold}"
    _write_listing(listed, data_dir, train)
    new = [record for record in records if record.city == city]
    num_folds = max(2, *Counter(record.city for record in train).values())
    learnt, _ = split_fold(train, 0, num_folds=num_folds)
    return Holdout(city, listed, len(learnt), num_folds, {SAME: same, NEW: new})


def _write_listing(listed: Path, data_dir: Path, train: Sequence[ImageRecord]) -> None:
    """The tables with the rows of `train` alone, and a link to the images."""
    listed.mkdir(parents=True, exist_ok=True)
    images = listed / "train"
    if not images.is_symlink():
        images.symlink_to((data_dir / "train").resolve(), target_is_directory=True)
    kept = {record.image_id for record in train}
    for name in (METADATA_CSV, SPLIT_CSV["train"]):
        with (data_dir / name).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [row for row in reader if row["id"].strip() in kept]
        with atomic_path(listed / name) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
