"""Draws what docs/geometry.md explains, from real views of one site.

    python -m scripts.draw_geometry VIEWS     # writes docs/images/geometry_<name>.jpg

VIEWS: a folder with train/JAX_068<view>_{RGB,AGL}.tif and rpc_ba/JAX_068_<view>_RGB.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geopose.cli import ArgumentParser, run_command
from geopose.data.heights import read_agl_m
from geopose.imagery.files.raster import create_raster, open_raster
from geopose.imagery.map import warp_to_map
from geopose.imagery.place.flow import SensorFlow, sensor_flow
from geopose.imagery.place.georeference import Georeference
from geopose.imagery.place.rpc import read_rpc_json
from geopose.imagery.rectify import Rectified, rectify

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
CREDIT = "JAX views: DFC2019/US3D, imagery courtesy of Maxar"
GROUND_M = -21.0  # of the site, metres above the ellipsoid
MAP = "EPSG:32617"
MAP_M = 0.4  # per pixel
LEANING, OPPOSITE = (
    "010",
    "012",
)  # seen from the south-south-west at 32 degrees; from the north at 18
HOLE = (24, 28, 84)  # dark blue, which neither roofs nor shadows are
_DPI = 100
_QUALITY = 80
_WINDOW_M = 150.0  # side of the pictures of the map


class View:
    """One view: its pixels, true heights and the flow that its RPCs give."""

    def __init__(self, folder: Path, name: str) -> None:
        with open_raster(folder / f"train/JAX_068{name}_RGB.tif") as image:
            self.rgb = image.read()
        self.name = name
        self.agl_m: NDArray[np.float32] = read_agl_m(folder / f"train/JAX_068{name}_AGL.tif")
        rpc = read_rpc_json(folder / f"rpc_ba/JAX_068_{name}_RGB.json")
        self.place = Georeference(rpc=rpc)
        height, width = self.agl_m.shape
        self.flow: SensorFlow = sensor_flow(self.place, height, width, GROUND_M)
        self.rectified: Rectified = rectify(
            self.agl_m, self.flow.scale_px_per_m, self.flow.angle_rad, self.rgb
        )


def _panel(axes: Axes, picture: NDArray, title: str, **options: object) -> None:
    axes.imshow(picture, interpolation="nearest", **options)  # type: ignore[arg-type]
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _save(figure: Figure, name: str, folder: Path) -> None:
    figure.text(0.995, 0.005, CREDIT, ha="right", va="bottom", fontsize=6, color="#555555")
    figure.tight_layout(pad=0.6, rect=(0.0, 0.02, 1.0, 0.97))
    figure.savefig(
        folder / f"geometry_{name}.jpg",
        dpi=_DPI,
        pil_kwargs={"quality": _QUALITY, "optimize": True},
    )
    plt.close(figure)


def _with_holes(rgb: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(known[..., None], rgb, HOLE).astype(np.uint8)


def draw_flow(view: View, folder: Path) -> None:
    """An image, its heights, and arrows from roofs to their footprints."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.6))
    _panel(axes[0], view.rgb, f"view {view.name}: flow leads from roofs to their ground")
    _panel(axes[1], view.agl_m, "height above ground, 0 to 40 m", vmin=0, vmax=40, cmap="viridis")
    scale, angle = view.flow.scale_px_per_m, view.flow.angle_rad
    rows, columns = (values.ravel() for values in np.mgrid[25:690:45, 25:700:45])
    tall = view.agl_m[rows, columns] > 6
    rows, columns = rows[tall], columns[tall]
    length = view.agl_m[rows, columns] * scale
    for one, colour in zip(axes, ("#ffd400", "#ff3030"), strict=True):
        one.quiver(
            columns, rows, length * np.sin(angle), length * np.cos(angle), color=colour,
            angles="xy", scale_units="xy", scale=1, width=0.005,
        )  # fmt: skip
    _save(figure, "flow", folder)


def draw_rectified(view: View, folder: Path) -> None:
    """Before, after, and what the image does not show."""
    done = view.rectified
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 4.1))
    _panel(axes[0], view.rgb, f"view {view.name}, as seen")
    if done.rgb is not None:
        _panel(axes[1], _with_holes(done.rgb, done.occlusion == 0), "rectified")
    classes = np.select([done.occlusion == 0, done.occlusion == 1], [0, 1], 2)
    colours = ListedColormap(["#dddddd", "#d1495b", "#444444"])
    title = "seen (light), hidden (red), unknown (dark)"
    _panel(axes[2], classes, title, cmap=colours, vmin=0, vmax=2)
    _save(figure, "rectified", folder)


def _on_map(pixels: NDArray, known: NDArray[np.bool_], place: Georeference) -> NDArray[np.float64]:
    """The middle of the site, grey, NaN where nothing is known: the same pixels for every view."""
    with tempfile.TemporaryDirectory() as folder:
        frame, target = Path(folder) / "frame.tif", Path(folder) / "map.tif"
        height, width = known.shape
        with create_raster(frame, height, width, 3, "uint8", mask=True, georeference=place) as out:
            out.write(pixels, 0, 0, known)
        with open_raster(frame) as image:
            warp_to_map(image, target, MAP, GROUND_M, MAP_M)
        with open_raster(target) as image:
            column, row = image.georeference.from_map(
                np.array(436206.0 - _WINDOW_M / 2), np.array(3357624.0 + _WINDOW_M / 2)
            )
            size = round(_WINDOW_M / MAP_M)
            rows, columns = (
                slice(round(float(at)), round(float(at)) + size) for at in (row, column)
            )
            grey = image.read(rows, columns).mean(axis=-1)
            return np.where(image.valid(rows, columns), grey, np.nan)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    both = np.isfinite(first) & np.isfinite(second)
    return float(np.corrcoef(first[both], second[both])[0, 1])


def _red_and_cyan(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey where both views agree, coloured where they do not; `HOLE` where one shows nothing."""
    both = np.isfinite(first) & np.isfinite(second)
    parts = [np.clip(np.nan_to_num(p / np.nanpercentile(p, 99)), 0, 1) for p in (first, second)]
    picture = np.stack([parts[0], parts[1], parts[1]], axis=-1)
    return _with_holes((255 * picture).astype(np.uint8), both)


def draw_two_views(first: View, second: View, folder: Path) -> None:
    """Two views from opposite sides on one map, as seen and rectified."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.7))
    everything = [np.ones(view.agl_m.shape, bool) for view in (first, second)]
    seen = [
        _on_map(view.rgb, known, view.place)
        for view, known in zip((first, second), everything, strict=True)
    ]
    done = [
        _on_map(view.rectified.rgb, view.rectified.occlusion == 0, view.place)
        for view in (first, second)
        if view.rectified.rgb is not None
    ]
    for one, pair, title in zip(axes, (seen, done), ("as seen", "rectified"), strict=True):
        words = f"views {first.name} (red) and {second.name} (cyan) on the map, {title}: r = "
        _panel(one, _red_and_cyan(*pair), words + f"{_correlation(*pair):.2f}")
        one.title.set_fontsize(8)
    _save(figure, "two_views", folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Draws all pictures."""
    parser: argparse.ArgumentParser = ArgumentParser(
        prog="draw_geometry.py", description="Draw the pictures of docs/geometry.md."
    )
    parser.add_argument("views", type=Path, metavar="VIEWS", help="folder of the JAX views")
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="DIR", help="docs/images")
    arguments = parser.parse_args(argv)
    first, second = (View(arguments.views, name) for name in (LEANING, OPPOSITE))
    draw_flow(first, arguments.out)
    draw_rectified(first, arguments.out)
    draw_two_views(first, second, arguments.out)


if __name__ == "__main__":
    sys.exit(run_command(main))
