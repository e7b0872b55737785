"""One image of a data set and its files, whatever its layout (`geopose.data.layouts.splits`).

In: the data directory ($DRIVENDATA_OVERHEAD_GEOPOSE) and what a layout lists. Out: `ImageRecord`s,
which of their files to read, and the names that predictions of them get.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geopose.data.image_size import image_size
from geopose.data.raw import RAW_SUFFIX
from geopose.errors import InputError
from geopose.files.origin import is_up_to_date

DATA_DIR_VARIABLE = "DRIVENDATA_OVERHEAD_GEOPOSE"
IMAGE_SUFFIXES = (".j2k", ".jp2", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
JPEG2000_SUFFIXES = (".j2k", ".jp2")  # what convert_j2k.py converts


@dataclass(frozen=True)
class ImageRecord:
    """One image of a split: where its files are and what is known about it."""

    image_id: str
    city: str
    gsd_m: float  # metres per pixel
    rgb: Path  # as listed, usually .j2k
    agl: Path | None  # heights, None without truth
    vflow: Path | None  # scale and angle, None without truth
    row: int = 0  # line of the CSV file; 0 = no file lists it
    csv_file: Path = Path()

    @property
    def where(self) -> str:
        """The CSV file and row, or else the image, that an error message should name."""
        if not self.row:
            return f"{self.rgb} ({self.image_id})"
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
        """Raw files beside the listed ones that were made of others, and so are not read."""
        sources = [path for path in (self.rgb, self.agl) if path is not None]
        pairs = [(path.with_suffix(RAW_SUFFIX), path) for path in sources]
        return [raw for raw, path in pairs if raw.is_file() and not is_up_to_date(raw, path)]


def picture_file(source: Path) -> Path:
    """The file that is quickest to decode an image from: its PNG if it has one, else itself."""
    png = source.with_suffix(".png")
    jpeg2000 = source.suffix.lower() in JPEG2000_SUFFIXES
    return png if jpeg2000 and is_up_to_date(png, source) else source


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


def check_files(record: ImageRecord) -> None:
    """Raises InputError if a file that will be read is not there, or a raw one does not fit."""
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
