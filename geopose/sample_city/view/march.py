"""What an oblique camera sees of a height field, and where the sun reaches it.

In: heights on the ground's pixel grid: every pixel is a column with a flat top and upright sides.
Out: per image pixel the exact height of the seen surface (to a thousandth of a pixel of its flow).
The rays are those of `raster`: pixel p looks along g = p + Z k, and sees the largest Z that a
column reaches. The sun is a ray of the same kind.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
_STEP_PX = 0.5  # thinner parts of columns than this may be passed over
_BISECTIONS = 9


def sample(values: NDArray, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray:
    """Values of the columns at ground pixels (x, y); beyond the edge those of the edge."""
    x, y = x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
    return cv2.remap(values, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def seen_heights(
    columns: Map, k: tuple[float, float], origin_px: tuple[int, int], shape: tuple[int, int]
) -> Map:
    """Height of what is seen in each pixel of an image.

    Args:
        columns: heights in metres, 0 or more, on the ground's pixel grid.
        k: flow (x, y) in pixels per metre.
        origin_px: where the image's first pixel lies on that grid (x, y). The grid reaches as far
            beyond the image as the tallest column leans.
        shape: (height, width) of the image.
    """
    step = _STEP_PX / max(math.hypot(*k), 1e-6)
    count = math.ceil(float(columns.max()) / step)
    below = np.zeros(shape, np.float32)
    for i in range(count, 0, -1):
        z = np.float32(i * step)
        # All rays of the image pass this height in the same place of their pixels.
        row, column = (origin_px[a] + math.floor(float(z) * k[a] + 0.5) for a in (1, 0))
        part = columns[row : row + shape[0], column : column + shape[1]]
        np.maximum(below, (part >= z) * z, out=below)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x, y = x + np.float32(origin_px[0]), y + np.float32(origin_px[1])
    return _refine(columns, k, (x, y), below, np.float32(step))


def _refine(
    columns: Map, k: tuple[float, float], pixel: tuple[Map, Map], below: Map, step: np.float32
) -> Map:
    """Between a height at which the ray is inside a column and one at which it is not."""
    x, y = pixel
    kx, ky = np.float32(k[0]), np.float32(k[1])
    inside, outside = below, below + step
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        hit = sample(columns, x + middle * kx, y + middle * ky) >= middle
        inside, outside = np.where(hit, middle, inside), np.where(hit, outside, middle)
    top = sample(columns, x + inside * kx, y + inside * ky)
    # The bisection ends on a top or on a side: tops are exact.
    return np.where(top - inside < step / 2**_BISECTIONS * 2, top, inside).astype(np.float32)


def shadow_heights(columns: Map, sun_k: tuple[float, float], first_px: float) -> Map:
    """Height up to which the air over each ground pixel is in shadow.

    Args:
        columns: as in `seen_heights`.
        sun_k: towards the sun, pixels on the ground per metre of rise.
        first_px: columns nearer than this do not count.
    """
    reach = max(math.hypot(*sun_k), 1e-6)
    y, x = np.mgrid[: columns.shape[0], : columns.shape[1]].astype(np.float32)
    kx, ky = np.float32(sun_k[0]), np.float32(sun_k[1])
    rise = np.float32(first_px / reach)
    shade = sample(columns, x + rise * kx, y + rise * ky) - rise
    step = 0.7 / reach
    while step < float(columns.max()):
        rise = np.float32(step)
        shade = np.maximum(shade, sample(shade, x + rise * kx, y + rise * ky) - rise)
        step *= 2.0
    return np.asarray(shade, np.float32)
