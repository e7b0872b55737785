"""Colours of the bare ground: streets, pavements, lawns, marks, water.

In: the shapes of a `World`, in drawing order. Out: an image of the ground plane. At height 0 the
seen pixel is the ground pixel, so this is drawn straight on the image grid, antialiased.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.sample_city.world.site import Shape

_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_LIMIT_PX = 20000.0  # keeps far corners inside OpenCV's integer range


def paint_ground(
    shapes: list[Shape], gsd_m: float, shape_px: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws the ground.

    Args:
        shapes: polygons and lines in metres, later ones cover earlier ones.
        gsd_m: metres per pixel.
        shape_px: (height, width).

    Returns:
        (H x W x 3 uint8 RGB, H x W uint8 mask of water: 255 = water).
    """
    image = np.zeros((*shape_px, 3), np.uint8)
    water = np.zeros(shape_px, np.uint8)
    size = np.array([shape_px[1], shape_px[0]], np.float64)
    for shape in shapes:
        px = np.asarray(shape.points) / gsd_m
        reach = 2.0 + shape.width_m / gsd_m
        if (px.max(axis=0) < -reach).any() or (px.min(axis=0) > size + reach).any():
            continue
        if shape.width_m > 0:
            _line(image, px, shape, gsd_m)
            continue
        fixed = _fixed(px)
        cv2.fillPoly(image, [fixed], shape.color, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(water, [fixed], 255 if shape.water else 0, cv2.LINE_8, _SHIFT)
    return image, water


def _line(image: NDArray[np.uint8], px: NDArray, shape: Shape, gsd_m: float) -> None:
    """A stripe of true width: as a quad, blended by its share of a pixel where thinner than one."""
    (x0, y0), (x1, y1) = px
    length = float(np.hypot(x1 - x0, y1 - y0))
    if length == 0.0:
        return
    width = shape.width_m / gsd_m
    half = max(width, 1.0) / 2
    nx, ny = -(y1 - y0) / length * half, (x1 - x0) / length * half
    quad = np.array(
        [[x0 + nx, y0 + ny], [x1 + nx, y1 + ny], [x1 - nx, y1 - ny], [x0 - nx, y0 - ny]]
    )
    color = np.asarray(shape.color)
    if width < 1.0:
        x = int(np.clip((x0 + x1) / 2, 0, image.shape[1] - 1))
        y = int(np.clip((y0 + y1) / 2, 0, image.shape[0] - 1))
        color = width * color + (1.0 - width) * image[y, x]
    cv2.fillPoly(image, [_fixed(quad)], color.tolist(), cv2.LINE_AA, _SHIFT)


def _fixed(px: NDArray) -> NDArray[np.int32]:
    clipped = np.clip(px, -_LIMIT_PX, _LIMIT_PX)
    return np.rint(clipped * (1 << _SHIFT)).astype(np.int32)
