"""Reads the images of a data directory, in the layout that a config or an option names.

A layout is another module of this folder with a function
`read_split(data_dir, split) -> list[ImageRecord]`; the module's name is the layout's. `split` is
"train" or "test"; a split that the data set does not have is an empty list. What every layout must
keep to is checked here.
"""

import importlib
import pkgutil
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

from geopose.data import layouts
from geopose.data.checks.numbers import gsd_problem
from geopose.data.layout import DATA_DIR_VARIABLE, ImageRecord, agl_name, check_files
from geopose.errors import InputError

CHALLENGE = "challenge"
SPLITS = ("train", "test")
Reader = Callable[[Path, str], list[ImageRecord]]


def _readers() -> dict[str, Reader]:
    """Of whatever lies in the folder: a name from a config is looked up there, never imported."""
    return {
        module.name: importlib.import_module(f"{layouts.__name__}.{module.name}").read_split
        for module in pkgutil.iter_modules(layouts.__path__)
        if f"{layouts.__name__}.{module.name}" != __name__
    }


LAYOUTS = _readers()


def read_split(data_dir: Path | str, split: str, layout: str = CHALLENGE) -> list[ImageRecord]:
    """Reads one split of a data directory, in the data set's own order.

    Args:
        data_dir: the directory.
        split: "train" (with truth) or "test".
        layout: one of LAYOUTS.

    Raises:
        InputError: unknown layout, no images, or naming the row or image of whatever does not fit.
    """
    records = list_images(Path(data_dir), split, layout)
    if not records:
        raise InputError(f"{data_dir}: no {split} images in layout {layout}")
    for record in records:
        if problem := gsd_problem(record.gsd_m):
            raise InputError(f"{record.where}: gsd is {problem}")
        check_files(record)
    if split == "test":
        _check_outputs(records)
    return records


def list_images(data_dir: Path, split: str, layout: str) -> list[ImageRecord]:
    """What a layout lists, before anything is checked but that every id is there once."""
    if layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}, expected {', '.join(LAYOUTS)}")
    records = LAYOUTS[layout](data_dir, split)
    seen: set[str] = set()
    for record in records:
        if record.image_id in seen:
            raise InputError(f"{record.where}: this id is there twice; give every image its own")
        seen.add(record.image_id)
    return records


def _check_outputs(records: Sequence[ImageRecord]) -> None:
    """Predictions are named after the image, in one flat folder: no two may have one name."""
    outputs: dict[str, ImageRecord] = {}
    for record in records:
        first = outputs.setdefault(agl_name(record.rgb.name), record)
        if first is not record:
            raise InputError(
                f"{record.where}: {record.rgb.name} would overwrite the prediction of "
                f"{first.where}; give the images different names"
            )


def add_data_options(parser: ArgumentParser) -> None:
    """The options --data-dir and --layout of a command that reads a data directory."""
    parser.add_argument(
        "--data-dir",
        "--data_dir",
        metavar="DIR",
        help=f"data directory (default: ${DATA_DIR_VARIABLE})",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=CHALLENGE,
        help="how the data directory is laid out (default: %(default)s)",
    )
