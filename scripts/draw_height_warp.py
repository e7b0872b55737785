"""Draws what `train.height_warp` does, with a scene of the sample city.

python -m scripts.draw_height_warp     # writes docs/images/height_warp.jpg
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot as plt

from geopose.augment.height_warp import warp_height
from geopose.cli import ArgumentParser, run_command
from geopose.sample_city.view.render import render_scene

IMAGE = Path(__file__).resolve().parents[1] / "docs/images/height_warp.jpg"
FACTORS = (0.6, 1.0, 1.6)
_CITY, _INDEX, _SIZE_PX = "SYB", 3, 320
_DPI, _QUALITY = 80, 82


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the picture."""
    ArgumentParser(description="Draw other heights of one scene.").parse_args(argv)
    scene = render_scene(_CITY, _INDEX, _SIZE_PX, seed=7)
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.2), layout="constrained")
    highest = float(np.nanmax(scene.agl_m)) * max(FACTORS)
    colours = plt.get_cmap("viridis").with_extremes(bad="white")
    for column, factor in enumerate(FACTORS):
        image, agl_m = warp_height(
            scene.rgb, scene.agl_m, scene.scale_px_per_m, scene.angle_rad, factor
        )
        axes[0, column].imshow(image)
        axes[0, column].set_title("as rendered" if factor == 1 else f"{factor:g} times as tall")
        shown = axes[1, column].imshow(agl_m, cmap=colours, vmin=0, vmax=highest)
        for row in axes:
            row[column].set_axis_off()
    figure.colorbar(shown, ax=axes[1], label="AGL, m (white: unknown)", shrink=0.9)
    figure.savefig(IMAGE, dpi=_DPI, pil_kwargs={"quality": _QUALITY})


if __name__ == "__main__":
    sys.exit(run_command(main))
