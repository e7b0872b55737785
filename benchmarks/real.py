"""How well models do on real views that they have never seen: one row a checkpoint.

    python benchmarks/real.py --views DIR [DIR ...] --models NAME=FILE [NAME=FILE ...]
        [--csv benchmarks/results/real.csv] [--picture FILE] [--tta d4]

A DIR of `--views` holds `<id>_RGB.tif`, `<id>_AGL.tif` and `<id>_VFLOW.json`, itself or in
`train/`, and says gsd in `metadata.csv` (else `--gsd`); its images are one city, named like it.
Flow is scored twice: with the model's own direction and scale, and with those of the images' RPCs
where they have any (heights as predicted). R2 is the challenge's: over all pixels of the folder.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopose.checkpoints.load import load_model  # noqa: E402
from geopose.data.heights import read_agl_m  # noqa: E402
from geopose.data.rgb import read_rgb  # noqa: E402
from geopose.data.vflow import read_vflow  # noqa: E402
from geopose.errors import InputError  # noqa: E402
from geopose.geometry import angle_difference  # noqa: E402
from geopose.imagery.files.raster import open_raster  # noqa: E402
from geopose.imagery.place.flow import sensor_flow  # noqa: E402
from geopose.inference.predict.ensemble import Member  # noqa: E402
from geopose.inference.predict.tta import Tta  # noqa: E402
from geopose.metrics import ScoreAccumulator  # noqa: E402
from geopose.output.preview import Pose, PreviewRow, draw_preview  # noqa: E402


@dataclass(frozen=True)
class View:
    """A real image with its truth, and its flow by its RPCs (None without)."""

    name: str
    rgb: NDArray[np.uint8]
    gsd_m: float
    truth: Pose
    sensor: tuple[float, float] | None


def read_views(folder: Path, gsd_m: float | None) -> list[View]:
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
        agl_m = read_agl_m(place / f"{name}_AGL.tif")
        flow = read_vflow(place / f"{name}_VFLOW.json")
        views.append(View(name, read_rgb(path), gsd, Pose(agl_m, *flow), _by_rpc(path)))
    if not views:
        raise InputError(f"{place}: holds no *_RGB.tif; give a folder of views with --views")
    return views


def _by_rpc(path: Path) -> tuple[float, float] | None:
    with open_raster(path) as image:
        if image.georeference.rpc is None:
            return None
        flow = sensor_flow(image.georeference, *image.shape)
    return flow.scale_px_per_m, flow.angle_rad


def predict(checkpoint: Path, views: list[View], tta: str | None) -> Iterator[Pose]:
    """What a checkpoint says of each view."""
    member, mean = Member(load_model(checkpoint)).eval(), Tta.from_name(tta)
    for view in views:
        image = torch.from_numpy(np.ascontiguousarray(view.rgb.transpose(2, 0, 1)))[None]
        with torch.inference_mode():
            said = mean(member, image, torch.tensor([[view.gsd_m]]))
        agl_m = said.agl_m[0, 0].numpy()
        yield Pose(agl_m, float(said.scale_px_per_m), float(said.angle_rad))


def score(views: list[View], poses: list[Pose]) -> dict[str, float]:
    """The columns of one row, as they stand in the CSV file."""
    own, given = ScoreAccumulator(), ScoreAccumulator()
    angles, heavy = [], []
    for view, pose in zip(views, poses, strict=True):
        true = view.truth
        sure = (true.agl_m, true.scale_px_per_m, true.angle_rad)
        own.update("it", pose.agl_m, pose.scale_px_per_m, pose.angle_rad, *sure)
        if view.sensor is not None:
            given.update("it", pose.agl_m, *view.sensor, *sure)
        angles.append(math.degrees(float(angle_difference(pose.angle_rad, true.angle_rad))))
        heavy.append(true.scale_px_per_m)
    result = own.result()["cities"]["it"]
    by_rpc = given.result()["cities"].get("it", {}).get("vflow_r2", math.nan)
    return {
        "views": len(views),
        "score": result["score"],
        "agl_r2": result["agl_r2"],
        "flow_r2": result["vflow_r2"],
        "flow_r2_rpc": by_rpc,
        "angle_deg": result["mean"]["angle_deg"],
        "angle_deg_by_scale": float(np.average(angles, weights=heavy)),
        "scale_px_per_m": result["mean"]["scale_px_per_m"],
        "agl_m": result["mean"]["agl_m"],
    }


def zero_heights(views: list[View]) -> list[Pose]:
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
    name, _, file = text.rpartition("=")
    return name or Path(file).stem, Path(file)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--views", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--models", type=_named, nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--gsd", type=float, help="metres a pixel where no metadata.csv says it")
    parser.add_argument("--tta", default="d4", help="as in an inference config, or none (d4)")
    parser.add_argument("--csv", type=Path, help="write the rows into this file, too")
    parser.add_argument("--picture", type=Path, help="draw the last model on the first folder")
    parser.add_argument("--each", action="store_true", help="also print every view's numbers")
    arguments = parser.parse_args()
    tta = None if arguments.tta == "none" else arguments.tta
    rows: list[dict[str, object]] = []
    for number, folder in enumerate(arguments.views):
        views = read_views(folder, arguments.gsd)
        rows.append({"model": "zero heights", "place": folder.name, "tta": "none"})
        flat = score(views, zero_heights(views))
        rows[-1] |= flat | dict.fromkeys(("angle_deg", "angle_deg_by_scale"), math.nan)
        for name, file in arguments.models:
            poses = list(predict(file, views, tta))
            rows.append({"model": name, "place": folder.name, "tta": arguments.tta})
            rows[-1] |= score(views, poses)
            if arguments.each:
                _print_views(views, poses)
        if arguments.picture is not None and number == 0 and arguments.models:
            drawn = [
                PreviewRow(view.name, view.rgb, view.truth, pose)
                for view, pose in list(zip(views, poses, strict=True))[::3]
            ]
            draw_preview(arguments.picture, drawn, f"Real views, {arguments.models[-1][0]}")
    _print_table(rows)
    if arguments.csv is not None:
        add_rows(arguments.csv, rows)


def _print_views(views: list[View], poses: list[Pose]) -> None:
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
