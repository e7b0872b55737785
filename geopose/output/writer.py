"""Writes one image's prediction: heights and flow in the challenge's format.

In: heights in metres, scale in px/m, angle in radians. Out: `<id>_AGL.tif` and `<id>_VFLOW.json`.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.data.io import write_agl_cm, write_vflow
from geopose.data.layout import agl_name, vflow_name
from geopose.errors import RunError


def output_names(rgb_name: str) -> tuple[str, str]:
    """File names of the height map and the flow that belong to an image's file name."""
    return agl_name(rgb_name), vflow_name(rgb_name)


def write_prediction(
    folder: Path,
    rgb_name: str,
    agl_m: NDArray[np.floating],
    scale_px_per_m: float,
    angle_rad: float,
) -> None:
    """Writes both files of a prediction, or neither.

    Args:
        folder: exists already.
        rgb_name: file name of the image, `<id>_RGB.<any>`.
        agl_m: H x W, every pixel a number in 0..655.34.
        scale_px_per_m: 0 or more.
        angle_rad: flow direction; stored in [0, 2 pi).

    Raises:
        RunError: a value that cannot be stored; files of an earlier run under these names are
            removed, so that nobody takes them for this one's.
    """
    agl_file, vflow_file = (folder / name for name in output_names(rgb_name))
    try:
        write_agl_cm(agl_file, agl_m)
        write_vflow(vflow_file, scale_px_per_m, angle_rad)
    except RunError:
        discard_prediction(folder, rgb_name)
        raise


def discard_prediction(folder: Path, rgb_name: str) -> None:
    """Removes the files of an image, if there are any."""
    for name in output_names(rgb_name):
        (folder / name).unlink(missing_ok=True)
