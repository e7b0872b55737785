"""How long rectification takes: ours, a pixel loop as one writes it down, a plain scatter.

    python benchmarks/rectify.py [--size 2048] [--repeat 3] [--loop-size 256]

On an image of the sample city. The loop and the scatter move each height by its flow, round, and
keep the tallest; they close no cracks and do not say what is hidden. The loop runs on a corner of
the image and its time is scaled to the whole. CPU seconds on one thread, the best of several runs.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopose.imagery.rectify import SEEN, rectify  # noqa: E402
from geopose.sample_city.view.render import render_scene  # noqa: E402


def pixel_loop(
    agl_m: NDArray[np.float32], rgb: NDArray[np.uint8], scale: float, angle: float
) -> tuple[NDArray, NDArray]:
    """The baseline's loop: one pixel after the other."""
    height, width = agl_m.shape
    out, moved = np.full(agl_m.shape, np.nan, np.float32), np.zeros_like(rgb)
    right, down = scale * math.sin(angle), scale * math.cos(angle)
    for row in range(height):
        for column in range(width):
            agl = agl_m[row, column]
            if np.isnan(agl):
                continue
            to_row, to_column = round(row + agl * down), round(column + agl * right)
            if not (0 <= to_row < height and 0 <= to_column < width):
                continue
            if np.isnan(out[to_row, to_column]) or agl > out[to_row, to_column]:
                out[to_row, to_column] = agl
                moved[to_row, to_column] = rgb[row, column]
    return out, moved


def plain_scatter(
    agl_m: NDArray[np.float32], rgb: NDArray[np.uint8], scale: float, angle: float
) -> tuple[NDArray, NDArray]:
    """The same with arrays: sorted by height, so that the tallest is written last."""
    rows, columns = np.nonzero(~np.isnan(agl_m))
    agl = agl_m[rows, columns]
    to_row = np.rint(rows + agl * (scale * math.cos(angle))).astype(int)
    to_column = np.rint(columns + agl * (scale * math.sin(angle))).astype(int)
    inside = (to_row >= 0) & (to_row < agl_m.shape[0])
    inside &= (to_column >= 0) & (to_column < agl_m.shape[1])
    order = np.flatnonzero(inside)[np.argsort(agl[inside], kind="stable")]
    out, moved = np.full(agl_m.shape, np.nan, np.float32), np.zeros_like(rgb)
    out[to_row[order], to_column[order]] = agl[order]
    moved[to_row[order], to_column[order]] = rgb[rows[order], columns[order]]
    return out, moved


def best(run: Callable[[], object], repeat: int) -> float:
    """CPU seconds of the quickest run."""
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, metavar="PX")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--loop-size", type=int, default=256, metavar="PX")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    scene = render_scene("SYA", 5, arguments.size, 0)
    agl_m, rgb = scene.agl_m, scene.rgb
    flow = scene.scale_px_per_m, scene.angle_rad
    corner = np.s_[: arguments.loop_size, : arguments.loop_size]
    scale_up = agl_m.size / agl_m[corner].size
    ours = best(lambda: rectify(agl_m, *flow, rgb), arguments.repeat)
    heights = best(lambda: rectify(agl_m, *flow), arguments.repeat)
    scatter = best(lambda: plain_scatter(agl_m, rgb, *flow), arguments.repeat)
    loop = best(lambda: pixel_loop(agl_m[corner], rgb[corner], *flow), 1) * scale_up
    seen = (rectify(agl_m, *flow).occlusion == SEEN).mean()
    landed = (~np.isnan(plain_scatter(agl_m, rgb, *flow)[0])).mean()
    rows = (
        ("rectify, heights and colours", ours, seen),
        ("rectify, heights", heights, seen),
        ("plain scatter", scatter, landed),
        ("pixel loop (scaled)", loop, landed),
    )
    print(f"{arguments.size} x {arguments.size} px, {flow[0]:.2f} px/m, to {agl_m.max():.0f} m\n")
    print("| what | CPU s | cells filled |\n|---|---|---|")
    for name, seconds, share in rows:
        print(f"| {name} | {seconds:.2f} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
