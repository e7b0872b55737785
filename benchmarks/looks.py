"""How real and synthetic scenes look, by what a pixel shows: ground, roof, facade; lit or not.

    python benchmarks/looks.py --views DIR [--presets easy real] [--scenes 16] [--picture FILE]
        [--dsm FILE ... --dsm-cell M]

Heights and flow say which pixels show ground, roofs and facades, and the sun's direction which of
them it reaches. For each class: share of the image, luminance (median, deviation; 0..255), colour
(red and blue against green) and gradient (median, grey values per pixel). `views.csv` of DIR gives
the azimuths of sensor and sun and the sun's elevation. Real views are measured, never trained on.
"""

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopose.data.heights import read_agl_m  # noqa: E402
from geopose.data.rgb import read_rgb  # noqa: E402
from geopose.data.vflow import read_vflow  # noqa: E402
from geopose.imagery.rectify import rectify  # noqa: E402
from geopose.sample_city.view.district_view import render_district  # noqa: E402
from geopose.sample_city.view.render import render_scene  # noqa: E402
from geopose.sample_city.world.cities import CITIES  # noqa: E402
from geopose.sample_city.world.district import District, read_district  # noqa: E402

LOW_M, TALL_M = 0.7, 4.0
SHADOW_BIAS_M = 1.5  # lidar's ragged edges and the rectified map's cracks
CLASSES = (
    "ground lit",
    "ground in shadow",
    "roof lit",
    "roof in shadow",
    "facade to the sun",
    "facade away",
    "facade in shadow",
    "trees",
)
Image = NDArray[np.uint8]
Seen = tuple[Image, NDArray, NDArray, NDArray]


def _unit(angle_rad: float) -> NDArray[np.float64]:
    return np.array([math.sin(angle_rad), math.cos(angle_rad)])


def _at(values: NDArray, x: NDArray, y: NDArray) -> NDArray:
    return cv2.remap(
        values,
        x.astype(np.float32),
        y.astype(np.float32),
        cv2.INTER_LINEAR,
        None,
        cv2.BORDER_REPLICATE,
    )


def classify(
    rgb: Image,
    agl_m: NDArray[np.float32],
    k: NDArray[np.float64],
    sun_k: NDArray[np.float64],
) -> NDArray[np.int8]:
    """Number in CLASSES of every pixel, -1 = none of them or unknown.

    Args:
        rgb: H x W x 3.
        agl_m: heights of what is seen, NaN = unknown.
        k: flow in pixels per metre, (x, y).
        sun_k: towards the sun, pixels on the ground per metre that its rays fall.
    """
    scale = float(np.hypot(*k))
    plan = rectify(agl_m, scale, math.atan2(*k)).agl_m
    seen = np.isfinite(plan)
    plan = np.where(seen, plan, 0).astype(np.float32)
    height = np.where(np.isfinite(agl_m), agl_m, 0).astype(np.float32)
    y, x = np.mgrid[: agl_m.shape[0], : agl_m.shape[1]].astype(np.float32)
    gx, gy = x + k[0] * height, y + k[1] * height
    shadow = np.zeros(agl_m.shape, bool)
    step_m = 0.7 / max(float(np.hypot(*sun_k)), 1e-6)
    for rise in np.arange(2 * step_m, float(plan.max()), step_m):
        above = _at(plan, gx + sun_k[0] * rise, gy + sun_k[1] * rise)
        shadow |= above > height + rise + SHADOW_BIAS_M
    smooth = cv2.GaussianBlur(plan, (0, 0), 2.0)
    slope = [_at(cv2.Sobel(smooth, cv2.CV_32F, *d), gx, gy) for d in ((1, 0), (0, 1))]
    facing = -(slope[0] * sun_k[0] + slope[1] * sun_k[1])
    facing /= np.maximum(np.hypot(*slope), 1e-3) * np.hypot(*sun_k)
    toward = k / scale
    drop = _at(height, x - 1.5 * toward[0], y - 1.5 * toward[1])
    drop -= _at(height, x + 1.5 * toward[0], y + 1.5 * toward[1])
    wall = (np.abs(drop * scale / 3.0 - 1.0) < 0.3) & (height > 2.0)
    green = rgb.astype(np.int16)
    tree = (green[..., 1] - green[..., 0] > 4) & (height > 2.0) & (green[..., 1] >= green[..., 2])
    low, tall = height < LOW_M, (height > TALL_M) & (np.abs(drop) < 0.6) & ~tree
    wall &= ~tree
    masks = (
        low & ~shadow,
        low & shadow,
        tall & ~shadow,
        tall & shadow,
        wall & (facing > 0.3) & ~shadow,
        wall & (facing < -0.2),
        wall & (facing > 0.3) & shadow,
        tree,
    )
    result = np.full(agl_m.shape, -1, np.int8)
    for number, mask in enumerate(masks):
        result[mask] = number
    result[~np.isfinite(agl_m)] = -1
    return result


def real_scenes(folder: Path) -> Iterator[Seen]:
    """(rgb, agl_m, k, sun_k) of every view that `views.csv` describes."""
    for row in csv.DictReader((folder / "views.csv").open()):
        stem = folder / "train" / row["id"]
        scale, angle = read_vflow(f"{stem}_VFLOW.json")
        turn = math.radians(float(row["sensor_azimuth_deg"]) - float(row["sun_azimuth"]))
        rise = math.tan(math.radians(float(row["sun_elevation"]))) * float(row["gsd_m"])
        agl = read_agl_m(f"{stem}_AGL.tif")
        yield read_rgb(f"{stem}_RGB.tif"), agl, scale * _unit(angle), _unit(angle + turn) / rise


def measure(scenes: Iterator[Seen]) -> list[list[str]]:
    """Rows of the table, one a class, and one for all pixels."""
    pixels: dict[str, list[NDArray]] = defaultdict(list)
    for rgb, agl_m, k, sun_k in scenes:
        kinds = classify(rgb, agl_m, k, sun_k)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edge = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 8
        data = np.dstack([rgb.astype(np.float32), grey, edge])
        pixels["all"].append(data.reshape(-1, 5)[::7])
        for number, name in enumerate(CLASSES):
            pixels[name].append(data[kinds == number][::3])
    count = sum(len(part) for name in CLASSES for part in pixels[name])
    rows = []
    for name in (*CLASSES, "all"):
        data = np.concatenate(pixels[name])
        if len(data) < 50:
            rows.append([name, "-", "", "", "", ""])
            continue
        red, green, blue = (np.median(data[:, i]) for i in range(3))
        low, mid, high = np.percentile(data[:, 3], (5, 50, 95))
        share = f"{100 * len(data) / count:.1f} %" if name != "all" else ""
        rows.append(
            [
                name,
                share,
                f"{low:.0f} {mid:.0f} {high:.0f}",
                f"{red / max(green, 1):.2f} {blue / max(green, 1):.2f}",
                f"{np.median(data[:, 4]):.1f}",
                f"{np.mean(data[:, 3] >= 250) * 100:.0f} {np.mean(data[:, 3] <= 40) * 100:.0f}",
            ]
        )
    return rows


def district_scenes(districts: list[District], count: int, seed: int) -> Iterator[Seen]:
    """The same of scenes of surface models in turn."""
    for number in range(count):
        scene = render_district(districts[number % len(districts)], number, 640, seed)
        camera = scene.parameters
        yield scene.rgb, scene.agl_m, np.array(camera.k), np.array(camera.sun_k)


def synthetic_scenes(preset: str, count: int, seed: int) -> Iterator[Seen]:
    """The same of scenes of a preset, all cities in turn."""
    names = list(CITIES)
    for number in range(count):
        scene = render_scene(names[number % len(names)], number, 640, seed, preset)
        camera = scene.parameters
        yield scene.rgb, scene.agl_m, np.array(camera.k), np.array(camera.sun_k)


def draw(path: Path, rows: list[list[Image]]) -> None:
    """Crops of equal ground size side by side: a row each of real, synthetic and surface models."""
    side, gap = 300, 6
    page = np.full((len(rows) * (side + gap), 4 * (side + gap), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, rgb in enumerate(row[:4]):
            top, left = ((size - side) // 2 for size in rgb.shape[:2])
            crop = rgb[top : top + side, left : left + side]
            y, x = i * (side + gap), j * (side + gap)
            page[y : y + side, x : x + side] = crop
    cv2.imwrite(str(path), page[:-gap, :-gap, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 86])


def main() -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--views", type=Path, metavar="DIR")
    parser.add_argument("--presets", nargs="*", default=["easy", "real"])
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dsm", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--dsm-cell", type=float, metavar="M")
    parser.add_argument("--picture", type=Path, help="draw crops of all, side by side")
    arguments = parser.parse_args()
    sources: dict[str, Iterator[Seen]] = {}
    if arguments.views is not None:
        sources["real views"] = real_scenes(arguments.views)
    for preset in arguments.presets:
        scenes = synthetic_scenes(preset, arguments.scenes, arguments.seed)
        sources[f"synthetic, {preset}"] = scenes
    districts = [read_district(path, arguments.dsm_cell) for path in arguments.dsm]
    if districts:
        scenes = district_scenes(districts, arguments.scenes, arguments.seed)
        sources["surface models, invented colours"] = scenes
    if arguments.picture is not None:
        rows = [[seen[0] for seen in islice(scenes, 4)] for scenes in sources.values()]
        draw(arguments.picture, rows)
        return
    tables = {name: measure(scenes) for name, scenes in sources.items()}
    for name, rows in tables.items():
        print(f"\n{name}\n")
        print("| pixels | share | luminance 5 50 95 % | R/G B/G | gradient | white, black % |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
