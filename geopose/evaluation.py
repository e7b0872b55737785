"""Scores a folder of predictions against a folder of truth: files in, table and JSON out."""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.cli import ArgumentParser
from geopose.data.checks.numbers import HeightCounts
from geopose.data.checks.units import UnitRatios
from geopose.data.heights import NODATA_CM, read_agl_cm, read_agl_m
from geopose.data.layout import agl_name
from geopose.data.layouts.splits import LAYOUTS, SPLITS, read_split
from geopose.data.lookup.cities import cities_of
from geopose.data.rgb import unknown_in
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.files.atomic import atomic_path
from geopose.files.writable import check_file_target
from geopose.metrics import ERROR_NAMES, ScoreAccumulator
from geopose.system.progress import progress_bar

logger = logging.getLogger(__name__)

AGL_SUFFIX = "_AGL.tif"
VFLOW_SUFFIX = "_VFLOW.json"
MANIFEST_NAME = "manifest.json"  # of a submission, in the folder above its predictions
_NAMED_AT_MOST = 3
_SAMPLED_MAPS = 12
_MOST_RESULT_BYTES = 1 << 20
# What may lie beside predictions without being one of them: images and pictures, notes.
_PREDICTION_KINDS = (".tif", ".tiff", ".json")
_TITLES = {
    "angle_deg": "angle, deg",
    "scale_px_per_m": "scale, px/m",
    "mag_px": "magnitude, px",
    "epe_px": "end point, px",
    "agl_m": "AGL, m",
}


def _ids(folder: Path, suffix: str) -> set[str]:
    return {p.name.removesuffix(suffix) for p in folder.glob(f"*{suffix}") if p.name[0] != "."}


def _list(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _check_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise InputError(
            f"{what} {folder}: not a directory; give one that holds <id>{AGL_SUFFIX} and "
            f"<id>{VFLOW_SUFFIX}"
        )


@dataclass(frozen=True)
class Truth:
    """An image with its true files.

    Attributes:
        image_id: its predictions are called `<image_id>_AGL.tif` and `<image_id>_VFLOW.json`.
        rgb: where it has no data, no height counts; None if nobody knows where it is.
    """

    image_id: str
    city: str
    agl: Path
    vflow: Path
    rgb: Path | None = None


@dataclass(frozen=True)
class Images:
    """What is compared.

    Attributes:
        predictions: their folder.
        truth: of every image.
        cities_from: what said which city each belongs to, for the user.
    """

    predictions: Path
    truth: list[Truth]
    cities_from: str


def find_pairs(predictions: Path, truth: Path, ignore: Path | None = None) -> list[str]:
    """Image ids, sorted: the truth's files decide which there must be.

    Args:
        predictions: folder with exactly one AGL and one VFLOW file an id. RGB images and files
            of other kinds may lie there too.
        truth: folder with both files of every id; whatever else it holds does not count.
        ignore: a file in `predictions` that is known not to be one (the JSON to be written).

    Raises:
        InputError: no such folder, no truth, or a file that is missing or should not be there.
    """
    _check_folder(predictions, "PREDICTIONS")
    _check_folder(truth, "TRUTH")
    ids = _ids(truth, AGL_SUFFIX)
    if not ids:
        raise InputError(f"TRUTH {truth}: holds no *{AGL_SUFFIX} file")
    half = sorted(ids ^ _ids(truth, VFLOW_SUFFIX))
    if half:
        raise InputError(f"TRUTH {truth}: only one of AGL and VFLOW there is of {_list(half)}")
    _check_predictions(predictions, truth, ids, ignore)
    return sorted(ids)


def _check_predictions(predictions: Path, truth: Path, ids: set[str], ignore: Path | None) -> None:
    """Refuses files of images that are missing, or of none of these ids; see `find_pairs`."""
    expected = {image_id + suffix for image_id in ids for suffix in (AGL_SUFFIX, VFLOW_SUFFIX)}
    present = {p.name for p in predictions.iterdir() if p.is_file() and p.name[0] != "."}
    missing = sorted(expected - present)
    if missing:
        raise InputError(
            f"PREDICTIONS {predictions}: {len(missing)} missing: {_list(missing)}; every image of "
            f"{truth} needs both files"
        )
    images = {p for p in present if p.rsplit(".", 1)[0].removesuffix("_RGB") in ids}
    extra = [n for n in present - expected - images if n.lower().endswith(_PREDICTION_KINDS)]
    if ignore is not None and ignore.resolve().parent == predictions.resolve():
        extra = [name for name in extra if name != ignore.name]
    extra = [name for name in extra if not _is_result(predictions / name)]
    if extra:
        raise InputError(
            f"PREDICTIONS {predictions}: {len(extra)} extra: {_list(sorted(extra))}; "
            f"{truth} has no such image, remove it, or swap the folders: PREDICTIONS comes first"
        )


def _is_result(path: Path) -> bool:
    """Whether a file is what `--json` wrote there for an earlier evaluation."""
    if path.suffix != ".json" or path.stat().st_size > _MOST_RESULT_BYTES:
        return False
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"score", "cities"} <= content.keys()


def _mention_swapped(predictions: Path, truth: Path) -> None:
    """Warns where the truth looks like a submission and the predictions do not."""
    if _is_submission(truth) and not _is_submission(predictions):
        logger.warning(
            "TRUTH %s lies in the folder of a submission; PREDICTIONS comes first: are the two "
            "swapped?",
            truth,
        )


def _is_submission(folder: Path) -> bool:
    return (folder.absolute().parent / MANIFEST_NAME).is_file()


def _truth_in_folder(
    predictions: Path, truth: Path, ignore: Path | None, data_dir: Path | None
) -> Images:
    names = find_pairs(predictions, truth, ignore)
    cities, source = cities_of(names, truth, data_dir)
    images = [
        Truth(name, cities[name], truth / (name + AGL_SUFFIX), truth / (name + VFLOW_SUFFIX))
        for name in names
    ]
    return Images(predictions, images, source)


def _truth_in_data(
    predictions: Path, data_dir: Path, split: str, layout: str, ignore: Path | None
) -> Images:
    """The images of a split of a data directory, all of which must have truth."""
    _check_folder(predictions, "PREDICTIONS")
    images = []
    for record in read_split(data_dir, split, layout):
        if record.agl is None or record.vflow is None:
            raise InputError(f"{record.where}: there are no heights and flow to compare with")
        name = agl_name(record.rgb.name).removesuffix(AGL_SUFFIX)
        images.append(Truth(name, record.city, record.agl, record.vflow, record.rgb))
    _check_predictions(predictions, data_dir, {image.image_id for image in images}, ignore)
    return Images(predictions, images, f"the data set in {data_dir}")


def _add_image(
    accumulator: ScoreAccumulator, units: UnitRatios, predictions: Path, truth: Truth
) -> None:
    """Reads one image's four files, checks them, adds them to the score."""
    # In float64: rounding centimetres to float32 metres would cost a perfect score its 1.
    true_agl_m = read_agl_m(truth.agl, np.float64)
    _forget_unseen(true_agl_m, truth)
    true_scale, true_angle = read_vflow(truth.vflow)
    pred_scale, pred_angle = read_vflow(predictions / (truth.image_id + VFLOW_SUFFIX))
    path = predictions / (truth.image_id + AGL_SUFFIX)
    pred_agl_m = read_agl_m(path, np.float64)
    if pred_agl_m.shape != true_agl_m.shape:
        (height, width), (true_height, true_width) = pred_agl_m.shape, true_agl_m.shape
        raise InputError(
            f"{path}: {width} x {height} pixels, the truth has {true_width} x {true_height}"
        )
    unknown = int(np.count_nonzero(np.isnan(pred_agl_m)))
    if unknown:
        raise InputError(
            f"{path}: {unknown} pixels say {NODATA_CM} (no data) or are declared to be none; "
            "predict a height in every pixel, or swap the folders: PREDICTIONS comes first"
        )
    units.add(pred_agl_m, true_agl_m, pred_scale, true_scale)
    accumulator.update(
        truth.city,
        pred_agl_m,
        pred_scale,
        pred_angle,
        true_agl_m,
        true_scale,
        true_angle,
    )


def _forget_unseen(true_agl_m: NDArray[np.float64], truth: Truth) -> None:
    """Sets heights to NaN where the image declares no data, as training does."""
    unknown = None if truth.rgb is None or not truth.rgb.is_file() else unknown_in(truth.rgb)
    if unknown is None:
        return
    if unknown.shape != true_agl_m.shape:
        raise InputError(f"{truth.rgb}: it has another size than {truth.agl}; they must be equal")
    true_agl_m[unknown] = np.nan


def _check_truth_heights(images: Sequence[Truth]) -> None:
    """Looks at some height maps of the truth; InputError if they are in another unit."""
    counts = HeightCounts()
    sample = images[:: max(1, len(images) // _SAMPLED_MAPS)][:_SAMPLED_MAPS]
    for image in sample:
        counts.add(read_agl_cm(image.agl))
    if problem := counts.problem():
        raise InputError(f"TRUTH {images[0].agl.parent}: in {len(sample)} height maps {problem}")


def evaluate(
    predictions: Path,
    truth: Path,
    ignore: Path | None = None,
    layout: str | None = None,
    split: str = "test",
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """The official score of a folder of predictions; one image in memory at a time.

    Args:
        predictions: see `find_pairs`.
        truth: folder with both files of every id; with `layout`, a data directory.
        ignore: see `find_pairs`.
        layout: of the data directory; None = `truth` is a folder of files.
        split: of the data directory, the one whose truth counts.
        data_dir: whose metadata.csv says the cities of a folder of files; None = look beside it.

    Returns:
        `ScoreAccumulator.result()`: NaN where the truth does not vary and R2 is undefined.

    Raises:
        InputError: a file that is missing, extra, unreadable, of another size than the truth, or
            a predicted no-data pixel or non-finite number; it is named.
    """
    images = find_images(predictions, truth, ignore, layout, split, data_dir)
    return score(images)


def find_images(
    predictions: Path,
    truth: Path,
    ignore: Path | None = None,
    layout: str | None = None,
    split: str = "test",
    data_dir: Path | None = None,
) -> Images:
    """What `evaluate` will compare; arguments and errors are its."""
    images = (
        _truth_in_folder(predictions, truth, ignore, data_dir)
        if layout is None
        else _truth_in_data(predictions, truth, split, layout, ignore)
    )
    _mention_swapped(predictions, truth)
    _check_truth_heights(images.truth)
    return images


def score(images: Images) -> dict[str, Any]:
    """The official score of predictions; one image in memory at a time."""
    accumulator, units = ScoreAccumulator(), UnitRatios()
    for image in progress_bar(images.truth, desc="evaluate", unit="image"):
        _add_image(accumulator, units, images.predictions, image)
    units.mention()
    return accumulator.result()


def _number(value: float, width: int, digits: int = 3) -> str:
    return f"{'undefined' if math.isnan(value) else f'{value:.{digits}f}':>{width}}"


def format_table(result: Mapping[str, Any]) -> str:
    """The result as text: R2 values a city, then mean / RMS of every error."""
    cities = result["cities"]
    width = max(len("city"), *map(len, cities)) if cities else len("city")
    lines = [f"{'city':<{width}} {'AGL R2':>10} {'flow R2':>10} {'score':>10}"]
    for name, city in cities.items():
        values = (city["agl_r2"], city["vflow_r2"], city["score"])
        lines.append(f"{name:<{width}} " + " ".join(_number(v, 10, 4) for v in values))
    titles = "".join(f"  {_TITLES[name]:>17}" for name in ERROR_NAMES)
    lines += ["", "errors, mean / RMS", f"{'city':<{width}}{titles}"]
    for name, city in cities.items():
        pairs = (
            f"  {_number(city['mean'][e], 7)} / {_number(city['rms'][e], 7)}" for e in ERROR_NAMES
        )
        lines.append(f"{name:<{width}}" + "".join(pairs))
    lines += ["", f"score {_number(result['score'], 0, 4)}"]
    return "\n".join(lines) + "\n"


def _without_nan(value: Any) -> Any:
    """NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """The result as JSON, complete or not at all; an undefined number is null."""
    text = json.dumps(_without_nan(dict(result)), indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as partial:
        partial.write_text(text)


def main(argv: Sequence[str] | None = None) -> None:
    """`evaluate.py PREDICTIONS TRUTH [--json FILE]`: prints the table, writes the JSON."""
    parser = ArgumentParser(
        description="Score predictions with the official measure: R2 of heights and flow by city.",
    )
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="submission folder")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="folder with the true files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="TRUTH is a data directory of this layout"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="of that directory (default: %(default)s)"
    )
    parser.add_argument(
        "--data-dir",
        "--data_dir",
        type=Path,
        metavar="DIR",
        help="its metadata.csv says the cities (default: one in TRUTH or above, else file names)",
    )
    arguments = parser.parse_args(argv)
    if arguments.data_dir is not None and arguments.layout is not None:
        raise InputError("--data-dir: with --layout, TRUTH is the data directory; leave it out")
    target = arguments.json
    if target is not None:
        if target.is_dir() or not target.parent.is_dir():
            raise InputError(f"--json {target}: not a file name in a directory that exists")
        check_file_target(target, "--json")
    images = find_images(
        arguments.predictions,
        arguments.truth,
        target,
        arguments.layout,
        arguments.split,
        arguments.data_dir,
    )
    result = score(images)
    for name, city in result["cities"].items():
        if math.isnan(city["score"]):
            logger.warning("%s: the truth does not vary, so its R2 (and score) is undefined", name)
    try:
        if target is not None:
            write_json(target, result)
    finally:  # a score that took an hour is shown whatever becomes of the file
        sys.stdout.write(f"cities from {images.cities_from}\n\n{format_table(result)}")
        sys.stdout.flush()
