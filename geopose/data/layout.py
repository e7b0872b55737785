"""Finds the images of a data directory: folders, CSV files, file names.

In: the data directory ($DRIVENDATA_OVERHEAD_GEOPOSE). Out: one `ImageRecord` for each row of
`geopose_train.csv` or `geopose_test.csv`, joined with `metadata.csv`, every file checked to be
there. Whatever is wrong raises InputError naming the CSV file and the row.
"""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from geopose.data.image_size import image_size
from geopose.data.raw import RAW_SUFFIX
from geopose.errors import InputError

DATA_DIR_VARIABLE = "DRIVENDATA_OVERHEAD_GEOPOSE"
METADATA_CSV = "metadata.csv"
SPLIT_CSV = {"train": "geopose_train.csv", "test": "geopose_test.csv"}

_COLUMNS = {"train": ("id", "agl", "json", "rgb"), "test": ("id", "rgb")}
IMAGE_SUFFIXES = (".j2k", ".jp2", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
JPEG2000_SUFFIXES = (".j2k", ".jp2")  # what convert_j2k.py converts

Row = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class ImageRecord:
    """One image of a split: where its files are and what is known about it."""

    image_id: str
    city: str
    gsd_m: float  # metres per pixel
    rgb: Path  # as listed, usually .j2k
    agl: Path | None  # heights, None without truth
    vflow: Path | None  # scale and angle, None without truth
    row: int = 0  # line of the CSV file
    csv_file: Path = Path()

    @property
    def where(self) -> str:
        """The CSV file and row that an error message should name."""
        return f"{self.csv_file} row {self.row} ({self.image_id})"

    def rgb_file(self) -> Path:
        """The image file to read: what convert_j2k.py wrote (raw, else PNG), else the listed one.

        What was written before the listed file was replaced is not read.
        """
        raw = self.rgb.with_suffix(RAW_SUFFIX)
        return raw if is_up_to_date(raw, self.rgb) else picture_file(self.rgb)

    def agl_file(self) -> Path | None:
        """The height map to read: raw, unless that is outdated; None without truth."""
        if self.agl is None:
            return None
        raw = self.agl.with_suffix(RAW_SUFFIX)
        return raw if is_up_to_date(raw, self.agl) else self.agl

    def outdated_raw(self) -> list[Path]:
        """Raw files beside the listed ones that are not read because they are older."""
        sources = [path for path in (self.rgb, self.agl) if path is not None]
        pairs = [(path.with_suffix(RAW_SUFFIX), path) for path in sources]
        return [raw for raw, path in pairs if raw.is_file() and not is_up_to_date(raw, path)]


def picture_file(source: Path) -> Path:
    """The file that is quickest to decode an image from: its PNG if it has one, else itself."""
    png = source.with_suffix(".png")
    jpeg2000 = source.suffix.lower() in JPEG2000_SUFFIXES
    return png if jpeg2000 and is_up_to_date(png, source) else source


def is_up_to_date(converted: Path, source: Path) -> bool:
    """Whether a converted file is there, and not from before its source was replaced.

    The converted file may also be there alone.
    """
    if not converted.is_file():
        return False
    return not source.is_file() or converted.stat().st_mtime_ns >= source.stat().st_mtime_ns


def resolve_data_dir(value: str | Path | None = None) -> Path:
    """The data directory: the value given, else the environment variable.

    Raises:
        InputError: neither is given, or it is not a directory.
    """
    text = str(value) if value else os.environ.get(DATA_DIR_VARIABLE, "")
    if not text:
        raise InputError(f"no data directory: set {DATA_DIR_VARIABLE} or give --data-dir DIR")
    path = Path(text).expanduser()
    if not path.is_dir():
        raise InputError(f"data directory {path} is not a directory; check --data-dir")
    return path


def read_split(data_dir: Path | str, split: str) -> list[ImageRecord]:
    """Reads the rows of one split, in file order.

    Args:
        data_dir: holds metadata.csv, geopose_<split>.csv and the folder <split>.
        split: "train" (with truth) or "test" (images only).

    Raises:
        InputError: naming the CSV file and row of whatever does not fit.
    """
    data_dir = Path(data_dir)
    metadata = _read_metadata(data_dir / METADATA_CSV)
    csv_file = data_dir / SPLIT_CSV[split]
    records: dict[str, ImageRecord] = {}
    outputs: dict[str, int] = {}
    for row, cells in _read_csv(csv_file, _COLUMNS[split]):
        image_id = cells["id"]
        if image_id in records:
            raise InputError(
                f"{csv_file} row {row}: id {image_id!r} is already in row {records[image_id].row}"
            )
        record = _record(data_dir, csv_file, split, row, cells, metadata)
        _check_files(record)
        if split == "test":  # predictions are named after the image, in one flat folder
            first = outputs.setdefault(agl_name(record.rgb.name), row)
            if first != row:
                raise InputError(
                    f"{csv_file} row {row}: {record.rgb.name} would overwrite the prediction "
                    f"of row {first}; give the images different names"
                )
        records[image_id] = record
    return list(records.values())


def check_sizes(records: Sequence[ImageRecord]) -> None:
    """Compares the headers of every image and height map.

    Raises:
        InputError: naming the first row whose image and heights differ in size.
    """
    for record in records:
        if (agl := record.agl_file()) is not None:
            check_same_size(record, image_size(record.rgb_file()), image_size(agl))


def check_same_size(record: ImageRecord, rgb: tuple[int, ...], agl: tuple[int, ...]) -> None:
    """Raises InputError naming the row unless both (height, width) are equal."""
    if tuple(rgb[:2]) != tuple(agl[:2]):
        raise InputError(
            f"{record.where}: {record.rgb_file().name} has {rgb[1]} x {rgb[0]} pixels, "
            f"{(record.agl_file() or Path()).name} {agl[1]} x {agl[0]}; they must be equal"
        )


def agl_name(rgb_name: str) -> str:
    """File name of the heights of an image: CITY_1_RGB.j2k (or CITY_1_RGB) -> CITY_1_AGL.tif."""
    return f"{_base(rgb_name)}_AGL.tif"


def vflow_name(rgb_name: str) -> str:
    """File name of the flow of an image: CITY_1_RGB.j2k -> CITY_1_VFLOW.json."""
    return f"{_base(rgb_name)}_VFLOW.json"


def viz_name(rgb_name: str) -> str:
    """File name of the picture of a prediction: CITY_1_RGB.j2k -> CITY_1_VIZ.jpg."""
    return f"{_base(rgb_name)}_VIZ.jpg"


def _base(rgb_name: str) -> str:
    name = Path(rgb_name).name
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        name = Path(name).stem
    return name.removesuffix("_RGB")


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


def _check_files(record: ImageRecord) -> None:
    for path in (record.rgb_file(), record.agl_file(), record.vflow):
        if path is not None and not path.is_file():
            raise InputError(f"{record.where}: file {path} is not there; check the name or get it")
    _check_raw_sizes(record)


def _check_raw_sizes(record: ImageRecord) -> None:
    """Raises InputError if a raw file that will be read has another size than its source."""
    for used, source in (
        (record.rgb_file(), picture_file(record.rgb)),
        (record.agl_file(), record.agl),
    ):
        if used is None or source is None or used.suffix != RAW_SUFFIX or not source.is_file():
            continue
        (height, width), (source_height, source_width) = image_size(used), image_size(source)
        if (height, width) != (source_height, source_width):
            raise InputError(
                f"{used}: {width} x {height} pixels, but {source.name} has {source_width} x "
                f"{source_height}; run convert_j2k.py --format raw again"
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
        raise InputError(f"{what} is {text!r}, expected metres per pixel, more than 0")
    return value


def _read_metadata(path: Path) -> dict[str, Row]:
    metadata: dict[str, Row] = {}
    for row, cells in _read_csv(path, ("id", "city", "gsd")):
        if cells["id"] in metadata:
            first = metadata[cells["id"]][0]
            raise InputError(f"{path} row {row}: id {cells['id']!r} is already in row {first}")
        metadata[cells["id"]] = (row, cells)
    return metadata


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[Row]:
    """(line number, cells) of every row, cells stripped and non-empty in the given columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            missing = [name for name in columns if name not in header]
            if missing:
                raise InputError(
                    f"{path}: column {', '.join(missing)} is missing; it has {', '.join(header)}"
                    if header
                    else f"{path}: the file is empty, expected the columns {', '.join(columns)}"
                )
            rows = [(reader.line_num, cells) for cells in reader]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check --data-dir") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{path}: no rows below the header; list at least one image")
    return [(row, _clean(path, row, cells, columns)) for row, cells in rows]


def _clean(
    path: Path, row: int, cells: dict[str, str | None], columns: tuple[str, ...]
) -> dict[str, str]:
    cleaned = {name: (cells[name] or "").strip() for name in columns}
    for name, text in cleaned.items():
        if not text:
            raise InputError(f"{path} row {row}: {name} is empty; fill it in")
    return cleaned
