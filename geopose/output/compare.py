"""Draws predictions beside the truth: a data directory, two folders of poses in, one picture out.

python -m geopose.output.compare --data-dir DIR --predictions DIR --truth DIR --out preview.png
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from geopose.cli import ArgumentParser, positive_int, run_command
from geopose.data.heights import read_agl_m
from geopose.data.layout import ImageRecord, agl_name, resolve_data_dir, vflow_name
from geopose.data.layouts.splits import CHALLENGE, add_data_options, read_split
from geopose.data.rgb import read_image
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.files.writable import check_file_target
from geopose.output.preview import Pose, PreviewRow, draw_preview

logger = logging.getLogger(__name__)


def read_pose(folder: Path, rgb_name: str, size: tuple[int, ...]) -> Pose:
    """The height map and flow that belong to an image, from a folder of `_AGL` and `_VFLOW` files.

    Args:
        folder: holds the two files.
        rgb_name: file name of the image.
        size: (height, width) of the image, px.

    Raises:
        InputError: one of the two is missing or unreadable, or the heights have another size.
    """
    agl, vflow = folder / agl_name(rgb_name), folder / vflow_name(rgb_name)
    for path in (agl, vflow):
        if not path.is_file():
            raise InputError(f"{path}: no such file, but {rgb_name} is in the test split")
    agl_m = read_agl_m(agl)
    if agl_m.shape != tuple(size):
        (height, width), (rgb_height, rgb_width) = agl_m.shape, size
        raise InputError(
            f"{agl}: {width} x {height} pixels, but {rgb_name} has {rgb_width} x {rgb_height}"
        )
    return Pose(agl_m, *read_vflow(vflow))


def _read_row(record: ImageRecord, truth: Path, predictions: Path) -> PreviewRow:
    rgb = read_image(record.rgb_file()).rgb
    true, predicted = (
        read_pose(folder, record.rgb.name, rgb.shape[:2]) for folder in (truth, predictions)
    )
    return PreviewRow(record.image_id, rgb, true, predicted)


def spread_over_cities(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """`count` records, one city after the other in turn, as they come in the file."""
    by_city: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_city[record.city].append(record)
    rounds = max(len(group) for group in by_city.values())
    turns = [group[i] for i in range(rounds) for group in by_city.values() if i < len(group)]
    return turns[:count]


def draw_comparison(
    data_dir: Path,
    predictions: Path,
    truth: Path,
    out: Path,
    count: int,
    heading: str,
    layout: str = CHALLENGE,
) -> None:
    """Draws `count` scenes of the test split: image, true and predicted height and flow.

    Raises:
        InputError: a scene without prediction or truth, an unreadable file, heights of another
            size than the image, or `out` cannot be written (found before anything is drawn).
    """
    check_file_target(out, "--out")
    rows = [
        _read_row(record, truth, predictions)
        for record in spread_over_cities(read_split(data_dir, "test", layout), count)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_preview(out, rows, heading)
    logger.info("%d scenes drawn in %s", len(rows), out)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = ArgumentParser(
        prog="python -m geopose.output.compare", description="Draws predictions beside the truth."
    )
    add_data_options(parser)
    parser.add_argument("--predictions", type=Path, required=True, help="folder of predictions")
    parser.add_argument("--truth", type=Path, required=True, help="folder of true files")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png, .jpg)")
    parser.add_argument("--count", type=positive_int, default=4, help="scenes to draw (4)")
    parser.add_argument("--heading", default="", help="a line above the picture")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"--out {arguments.out}: the picture must end in .png or .jpg")
    draw_comparison(
        resolve_data_dir(arguments.data_dir),
        arguments.predictions,
        arguments.truth,
        arguments.out,
        arguments.count,
        arguments.heading,
        arguments.layout,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
