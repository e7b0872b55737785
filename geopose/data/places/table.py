"""The table of places, a CSV file `id,place`: images of one place must not be in two folds."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from geopose.data.layout import ImageRecord
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path

PLACES_CSV = "places.csv"
_COLUMNS = ("id", "place")


def places_file(data_dir: Path, given: str | Path | None) -> Path:
    """The table to read: the one that is given, else places.csv of the data directory."""
    return Path(given) if given else data_dir / PLACES_CSV


def read_places(path: Path, records: Sequence[ImageRecord]) -> dict[str, str]:
    """The place of every image.

    Args:
        path: the table.
        records: the images that it must know; others in it are left out.

    Raises:
        InputError: it cannot be read, names an id twice, or does not know an image.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: column {', '.join(missing)} is missing; add it")
            rows = [(reader.line_num, (row["id"] or "").strip(), row["place"]) for row in reader]
    except OSError as error:
        raise InputError(
            f"{path}: table of places cannot be read ({error.strerror}); make it with python -m "
            "geopose.data.places, or name it with dataset.places=FILE"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    known: dict[str, str] = {}
    for number, image_id, place in rows:
        if image_id in known:
            raise InputError(f"{path} row {number}: id {image_id!r} is there twice; remove one")
        if not (place or "").strip():
            raise InputError(f"{path} row {number}: place of {image_id!r} is empty; fill it in")
        known[image_id] = place.strip()
    for record in records:
        if record.image_id not in known:
            raise InputError(
                f"{path}: {record.where} is not in it; make the table anew with python -m "
                "geopose.data.places"
            )
    return {record.image_id: known[record.image_id] for record in records}


def write_places(path: Path, places: Mapping[str, str]) -> None:
    """Writes the table; RunError if it cannot be written."""
    try:
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(places.items())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error
