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
    known = np.zeros((agl_m.shape[0] // factor, agl_m.shape[1] // factor), np.int32)
    ranks = []
    for y, x in np.ndindex(factor, factor):
        heights = agl_m[y::factor, x::factor].copy()
        is_known = ~np.isnan(heights)
        heights[~is_known] = np.inf  # last in every order
        known += is_known
        ranks.append(heights)
    _sort_planes(ranks)
    picked = ranks[0]
    for rank in range(1, (len(ranks) - 1) // 2 + 1):
        np.copyto(picked, ranks[rank], where=(known - 1) // 2 == rank)
    picked[2 * known < len(ranks)] = np.nan
    return picked


def _sort_planes(planes: list[NDArray[np.float32]]) -> None:
    """Sorts few values of many pixels: odd-even transposition, many times faster than `np.sort`."""
    for turn in range(len(planes)):
        for i in range(turn % 2, len(planes) - 1, 2):
            low = np.minimum(planes[i], planes[i + 1])
            planes[i + 1], planes[i] = np.maximum(planes[i], planes[i + 1]), low
