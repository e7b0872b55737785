"""Writes one image's prediction: heights and flow in the challenge's format.

In: heights in metres, on any device, scale in px/m, angle in radians. Out: `<id>_AGL.tif` and
`<id>_VFLOW.json`. Heights become centimetres where they are, so that a GPU neither waits for the
conversion nor sends what the files do not hold.
"""

import errno
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose.data.heights import fits_cm, misfit_message, round_cm, write_cm
from geopose.data.layout import agl_name, vflow_name
from geopose.data.vflow import write_vflow
from geopose.errors import RunError, StorageError


@dataclass(frozen=True)
class Centimetres:
    """Predicted heights of N images as they will be stored, and what could not be.

    Attributes:
        agl_cm: N x H x W int32; 0 where a height does not fit.
        misfits: N x 3 float64: how many heights do not fit, place and metres of the first.
    """

    agl_cm: Tensor
    misfits: Tensor


def to_centimetres(agl_m: Tensor) -> Centimetres:
    """Rounds heights to centimetres on their own device, without waiting for it.

    Args:
        agl_m: N x 1 x H x W, any floating type.
    """
    agl_m = agl_m[:, 0].double()
    fits = fits_cm(agl_m)
    agl_cm = torch.where(fits, round_cm(agl_m), 0).to(torch.int32)
    bad = ~fits.flatten(1)
    first = bad.to(torch.uint8).argmax(dim=1, keepdim=True)
    height_m = agl_m.flatten(1).gather(1, first)
    misfits = torch.cat([bad.sum(dim=1, keepdim=True).double(), first.double(), height_m], dim=1)
    return Centimetres(agl_cm, misfits)


def check_misfits(misfits: Tensor, width: int, name: str) -> None:
    """Raises StorageError if some of an image's heights do not fit.

    Args:
        misfits: the image's row of `Centimetres.misfits`, on the CPU.
        width: of the image, px.
        name: what the message starts with.
    """
    count, first, height_m = misfits.tolist()
    if count:
        row, column = divmod(int(first), width)
        raise StorageError(f"{name}: {misfit_message(int(count), height_m, row, column)}")


def output_names(rgb_name: str) -> tuple[str, str]:
    """File names of the height map and the flow that belong to an image's file name."""
    return agl_name(rgb_name), vflow_name(rgb_name)


def write_prediction(
    folder: Path,
    rgb_name: str,
    agl_cm: NDArray[np.uint16],
    scale_px_per_m: float,
    angle_rad: float,
) -> None:
    """Writes both files of a prediction, or neither.

    Args:
        folder: exists already.
        rgb_name: file name of the image, `<id>_RGB.<any>`.
        agl_cm: H x W centimetres, every pixel known.
        scale_px_per_m: 0 or more.
        angle_rad: flow direction; stored in [0, 2 pi).

    Raises:
        StorageError: a flow that cannot be stored.
        RunError: a file cannot be written. Either way files of an earlier run under these names
            are removed, so that nobody takes them for this one's.
    """
    agl_file, vflow_file = (folder / name for name in output_names(rgb_name))
    try:
        write_cm(agl_file, agl_cm)
        write_vflow(vflow_file, scale_px_per_m, angle_rad)
    except RunError:
        discard_prediction(folder, rgb_name)
        raise


def discard_prediction(folder: Path, rgb_name: str) -> None:
    """Removes the files of an image, if there are any."""
    for name in output_names(rgb_name):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # then it never was there
                raise
