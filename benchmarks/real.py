"""How well models do on real views that they have never seen: one row a checkpoint.

    python benchmarks/real.py --views DIR [DIR ...] --models demo [NAME=FILE ...]
        [--csv benchmarks/results/real.csv] [--picture FILE] [--tta d4]

All are shown in the views of d4 unless `--tta` says otherwise; `demo` is the demonstration network.

A DIR of `--views` holds `<id>_RGB.tif`, `<id>_AGL.tif` and `<id>_VFLOW.json`, itself or in
`train/`, and says gsd in `metadata.csv` (else `--gsd`); its images are one city, named like it.
Flow is scored twice: with the model's own direction and scale, and with those of the images' RPCs
where they have any (heights as predicted). R2 is the challenge's: over all pixels of the folder.
"""

import argparse
import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scoring import Figures, View, predict  # noqa: E402
from geopose.checkpoints.remote.fetch import Source, fetch  # noqa: E402
from geopose.data.heights import read_agl_m  # noqa: E402
from geopose.data.rgb import read_rgb  # noqa: E402
from geopose.data.vflow import read_vflow  # noqa: E402
from geopose.errors import InputError  # noqa: E402
from geopose.imagery.files.raster import open_raster  # noqa: E402
from geopose.imagery.place.flow import sensor_flow  # noqa: E402
from geopose.metrics import ScoreAccumulator  # noqa: E402
from geopose.output.preview import Pose, PreviewRow, draw_preview  # noqa: E402
from geopose.words import DEMO  # noqa: E402


@dataclass(frozen=True)
class RealView(View):
    """A real image with its truth, and its flow by its RPCs (None without)."""

    sensor: tuple[float, float] | None = None


def read_views(folder: Path, gsd_m: float | None) -> list[RealView]:
    """All views of a folder, by name; InputError if there is none or no gsd."""
    place = folder / "train" if (folder / "train").is_dir() else folder
    table = folder / "metadata.csv"
    rows = csv.DictReader(table.open()) if table.is_file() else []
    gsds = {row["id"]: float(row["gsd"]) for row in rows}
    views = []
    for path in sorted(place.glob("*_RGB.tif")):
        name = path.name.removesuffix("_RGB.tif")
        gsd = gsds.get(name, gsd_m)
        if gsd is None:
            raise InputError(f"{path}: its gsd is unknown; give {table} or --gsd")
        truth = Pose(
            read_agl_m(place / f"{name}_AGL.tif"), *read_vflow(place / f"{name}_VFLOW.json")
        )
        views.append(RealView(name, read_rgb(path), gsd, truth, sensor=_by_rpc(path)))
    if not views:
        raise InputError(f"{place}: holds no *_RGB.tif; give a folder of views with --views")
    return views


def _by_rpc(path: Path) -> tuple[float, float] | None:
    with open_raster(path) as image:
        if image.georeference.rpc is None:
            return None
        flow = sensor_flow(image.georeference, *image.shape)
    return flow.scale_px_per_m, flow.angle_rad


def score(views: list[RealView], poses: list[Pose]) -> dict[str, float]:
    """The columns of one row, as they stand in the CSV file."""
    own, given = Figures(), ScoreAccumulator()
    for view, pose in zip(views, poses, strict=True):
        own.update(view, pose)
        if view.sensor is not None:
            true = view.truth
            scale, angle = view.sensor
            sure = (true.agl_m, true.scale_px_per_m, true.angle_rad)
            given.update("", pose.agl_m, scale, angle, *sure)
    found = own.result()
    by_rpc = given.result()["cities"].get("", {}).get("vflow_r2", math.nan)
    return {
        "views": len(views),
        "score": found["score"],
        "agl_r2": found["agl_r2"],
        "flow_r2": found["flow_r2"],
        "flow_r2_rpc": by_rpc,
        "angle_deg": found["angle_deg"],
        "angle_deg_by_scale": found["angle_deg_by_scale"],
        "scale_px_per_m": found["scale_px_per_m"],
        "agl_m": found["agl_m"],
    }


def zero_heights(views: list[RealView]) -> list[Pose]:
    """The least a model must beat: flat ground."""
    return [Pose(np.zeros_like(view.truth.agl_m), 0.0, 0.0) for view in views]


def add_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows into a CSV file in place of those of the same model, views and tta."""
    keys = ("model", "place", "tta")
    old = list(csv.DictReader(path.open())) if path.is_file() else []
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    kept = [row for row in old if tuple(row[key] for key in keys) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        writer.writerows({k: _rounded(v) for k, v in row.items()} for row in rows)


def _rounded(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value


def _named(text: str) -> tuple[str, Path]:
    """Name and file of a model."""
    name, _, file = text.rpartition("=")
    return name or Path(file).stem, fetch(Source(file))


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--views", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=FILE",
                        help=f"checkpoints, or {DEMO}")  # fmt: skip
    parser.add_argument("--gsd", type=float, help="metres a pixel where no metadata.csv says it")
    parser.add_argument("--tta", default="d4", help="as in an inference config, or none (d4)")
    parser.add_argument("--csv", type=Path, help="write the rows into this file, too")
    parser.add_argument("--picture", type=Path, help="draw the last model on the first folder")
    parser.add_argument("--each", action="store_true", help="also print every view's numbers")
    arguments = parser.parse_args()
    try:
        models = [_named(text) for text in arguments.models]
    except InputError as error:
        parser.error(str(error))
    tta = None if arguments.tta == "none" else arguments.tta
    rows: list[dict[str, object]] = []
    for number, folder in enumerate(arguments.views):
        views = read_views(folder, arguments.gsd)
        rows.append({"model": "zero heights", "place": folder.name, "tta": "none"})
        flat = score(views, zero_heights(views))
        rows[-1] |= flat | dict.fromkeys(("angle_deg", "angle_deg_by_scale"), math.nan)
        for name, file in models:
            poses = [pose for _, pose in predict(file, views, tta)]
            rows.append({"model": name, "place": folder.name, "tta": arguments.tta})
            rows[-1] |= score(views, poses)
            if arguments.each:
                _print_views(views, poses)
        if arguments.picture is not None and number == 0 and models:
            drawn = [
                PreviewRow(view.name, view.rgb, view.truth, pose)
                for view, pose in list(zip(views, poses, strict=True))[::3]
            ]
            draw_preview(arguments.picture, drawn, f"Real views, {models[-1][0]}")
    _print_table(rows)
    if arguments.csv is not None:
        add_rows(arguments.csv, rows)


def _print_views(views: list[RealView], poses: list[Pose]) -> None:
    for view, pose in zip(views, poses, strict=True):
        one = score([view], [pose])
        said = f"{pose.scale_px_per_m:.2f} px/m {math.degrees(pose.angle_rad):4.0f} deg"
        true = view.truth
        print(
            f"{view.name}: AGL {one['agl_r2']:+.2f}, flow {one['flow_r2']:+.2f}; {said}, "
            f"true {true.scale_px_per_m:.2f} px/m {math.degrees(true.angle_rad):4.0f} deg"
        )


def _print_table(rows: list[dict[str, object]]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        cells = [f"{v:+.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
