"""Resamples height maps without inventing heights: every output value is one of the inputs.

Averaging across a roof edge would make a height that is nowhere, and averaging with NaN would
spread it; so heights are picked, never mixed.
"""

import cv2
import numpy as np
from numpy.typing import NDArray


def warp_heights(
    agl_m: NDArray[np.float32], to_input: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Nearest-neighbour affine warp; NaN outside the map.

    Args:
        agl_m: H x W metres, NaN = unknown.
        to_input: 2 x 3, output pixel (x, y, 1) -> input pixel (x, y), pixel centres at integers.
        size: (height, width) of the output.
    """
    warped = cv2.warpAffine(
        agl_m,
        to_input,
        (size[1], size[0]),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )
    return np.asarray(warped, dtype=np.float32)


def shrink_heights(agl_m: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """One height for each block of factor x factor pixels: the lower median of the known ones.

    A block of which fewer than half the pixels are known is unknown.

    Args:
        agl_m: H x W metres, NaN = unknown, H and W multiples of `factor`.
        factor: block size.

    Returns:
        H / factor x W / factor.
    """
    height, width = agl_m.shape[0] // factor, agl_m.shape[1] // factor
    blocks = agl_m.reshape(height, factor, width, factor).swapaxes(1, 2)
    values = np.sort(blocks.reshape(height, width, factor * factor), axis=-1)  # NaN goes last
    known = factor * factor - np.isnan(values).sum(axis=-1)
    middle = np.maximum(known - 1, 0) // 2
    picked = np.take_along_axis(values, middle[..., None], axis=-1)[..., 0]
    picked[2 * known < factor * factor] = np.nan
    return picked
