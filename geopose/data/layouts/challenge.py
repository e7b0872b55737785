"""The Overhead Geopose Challenge's layout: two folders, a CSV file for each, one with the cities.

In: a data directory. Out: one `ImageRecord` for each row of `geopose_train.csv` or
`geopose_test.csv`, joined with `metadata.csv`. Whatever is wrong raises InputError naming the CSV
file and the row.
"""

import csv
import math
import re
from pathlib import Path, PurePosixPath

from geopose.data.checks.numbers import gsd_problem
from geopose.data.layout import ImageRecord
from geopose.errors import InputError

METADATA_CSV = "metadata.csv"
SPLIT_CSV = {"train": "geopose_train.csv", "test": "geopose_test.csv"}

_COLUMNS = {"train": ("id", "agl", "json", "rgb"), "test": ("id", "rgb")}

_DECIMAL_COMMA = re.compile(r"\d*,\d+")

Row = tuple[int, dict[str, str]]


def read_split(data_dir: Path, split: str) -> list[ImageRecord]:
    """Reads the rows of one split, in file order.

    Args:
        data_dir: holds metadata.csv, geopose_<split>.csv and the folder <split>.
        split: "train" (with truth) or "test" (images only).

    Raises:
        InputError: naming the CSV file and row of whatever does not fit.
    """
    metadata = _read_metadata(data_dir / METADATA_CSV)
    csv_file = data_dir / SPLIT_CSV[split]
    records: dict[str, ImageRecord] = {}
    for row, cells in _read_csv(csv_file, _COLUMNS[split]):
        image_id = cells["id"]
        if image_id in records:
            raise InputError(
                f"{csv_file} row {row}: id {image_id!r} is already in row {records[image_id].row}"
            )
        records[image_id] = _record(data_dir, csv_file, split, row, cells, metadata)
    return list(records.values())


def _record(
    data_dir: Path,
    csv_file: Path,
    split: str,
    row: int,
    cells: dict[str, str],
    metadata: dict[str, Row],
) -> ImageRecord:
    image_id = cells["id"]
    where = f"{csv_file} row {row}"
    if image_id not in metadata:
        raise InputError(f"{where}: id {image_id!r} is not in {data_dir / METADATA_CSV}; add it")
    paths = {
        column: _inside(data_dir / split, cells[column], where, column)
        for column in _COLUMNS[split]
        if column != "id"
    }
    meta_row, meta = metadata[image_id]
    meta_where = f"{data_dir / METADATA_CSV} row {meta_row}"
    return ImageRecord(
        image_id=image_id,
        city=meta["city"],
        gsd_m=_positive(meta["gsd"], f"{meta_where}: gsd of {image_id!r}"),
        rgb=paths["rgb"],
        agl=paths.get("agl"),
        vflow=paths.get("json"),
        row=row,
        csv_file=csv_file,
    )


def _inside(folder: Path, name: str, where: str, column: str) -> Path:
    """The listed file in its folder; a name that points elsewhere is refused."""
    listed = PurePosixPath(name)
    if listed.is_absolute() or ".." in listed.parts or "\0" in name:
        raise InputError(f"{where}: {column} is {name!r}, expected a file name inside {folder}")
    return folder / listed


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        hint = "; write a decimal point" if _DECIMAL_COMMA.fullmatch(text) else ""
        raise InputError(f"{what} is {text!r}, expected metres per pixel, more than 0{hint}")
    if problem := gsd_problem(value):
        raise InputError(f"{what}: {problem}")
    return value


def _read_metadata(path: Path) -> dict[str, Row]:
    metadata: dict[str, Row] = {}
    for row, cells in _read_csv(path, ("id", "city", "gsd")):
        if cells["id"] in metadata:
            first = metadata[cells["id"]][0]
            raise InputError(f"{path} row {row}: id {cells['id']!r} is already in row {first}")
        metadata[cells["id"]] = (row, cells)
    return metadata


def city_names(path: Path) -> dict[str, str]:
    """The city of every id of a metadata.csv; InputError as for `read_split`."""
    return {image_id: cells["city"] for image_id, (_, cells) in _read_metadata(path).items()}


def image_names(path: Path) -> dict[str, str]:
    """The image file of every id of a geopose_<split>.csv; InputError as for `read_split`."""
    return {cells["id"]: cells["rgb"] for _, cells in _read_csv(path, ("id", "rgb"))}


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[Row]:
    """(line number, cells) of every row, cells stripped and non-empty in the given columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            _check_header(path, header)
            missing = [name for name in columns if name not in header]
            if missing:
                raise InputError(
                    f"{path}: column {', '.join(missing)} is missing; it has {', '.join(header)}"
                    if header
                    else f"{path}: the file is empty, expected the columns {', '.join(columns)}"
                )
            rows = [(reader.line_num, cells) for cells in reader]
            _check_cells(path, len(header), rows)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check --data-dir") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{path}: no rows below the header; list at least one image")
    return [(row, _clean(path, row, cells, columns)) for row, cells in rows]


def _check_header(path: Path, header: list[str]) -> None:
    """Refuses a column that is there twice: nobody knows which of them counts."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: column {', '.join(twice)} is there twice; remove one")
    if len(header) == 1 and ";" in header[0]:
        raise InputError(f"{path}: its cells are separated by semicolons; separate them by commas")


def _check_cells(path: Path, columns: int, rows: list[tuple[int, dict]]) -> None:
    """Refuses a row with more cells than columns, of which the last would be dropped."""
    for row, cells in rows:
        more = cells.get(None)
        if more is not None:
            raise InputError(
                f"{path} row {row}: {columns + len(more)} cells for {columns} columns, the last is "
                f"{more[-1]!r}; a decimal comma must be a point, a comma inside a cell in quotes"
            )


def _clean(
    path: Path, row: int, cells: dict[str, str | None], columns: tuple[str, ...]
) -> dict[str, str]:
    cleaned = {name: (cells[name] or "").strip() for name in columns}
    for name, text in cleaned.items():
        if not text:
            raise InputError(f"{path} row {row}: {name} is empty; fill it in")
    return cleaned
