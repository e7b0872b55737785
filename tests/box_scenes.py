"""Scenes of boxes whose heights, footprints and hidden ground follow from a formula, for tests."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Box:
    """An upright building: footprint in pixels, roof height in metres at its first edge.

    `rise_m` is how much the roof rises per pixel to the right.
    """

    left: float
    top: float
    right: float
    bottom: float
    height_m: float
    rise_m: float = 0.0

    def ray(self, x: NDArray, y: NDArray, k: tuple[float, float]) -> NDArray:
        """The height at which the ray of each image position meets the box, -inf where not."""
        low, high = np.zeros(x.shape), np.full(x.shape, np.inf)
        for start, step, first, last in (
            (x, k[0], self.left, self.right),
            (y, k[1], self.top, self.bottom),
        ):
            if step == 0.0:
                high = np.where((start >= first) & (start <= last), high, -np.inf)
                continue
            ends = (first - start) / step, (last - start) / step
            low = np.maximum(low, np.minimum(*ends))
            high = np.minimum(high, np.maximum(*ends))
        # Below the roof: z <= height + rise (x + z kx - left)
        roof = (self.height_m + self.rise_m * (x - self.left)) / (1.0 - self.rise_m * k[0])
        high = np.minimum(high, roof)
        return np.where(high >= low, high, -np.inf)

    def roof(self, x: NDArray, y: NDArray) -> NDArray:
        """The height of what stands on each ground position, 0 beside the box."""
        inside = (x >= self.left) & (x <= self.right) & (y >= self.top) & (y <= self.bottom)
        return np.where(inside, self.height_m + self.rise_m * (x - self.left), 0.0)


@dataclass(frozen=True)
class BoxScene:
    """What an image shows of boxes, and what a perfect rectification of it would be.

    Attributes:
        agl_m: H x W float32, heights of what is seen.
        ground_m: H x W float32, heights of what stands on each pixel's ground.
        hidden: where that is behind something, within the image.
        outside: where that is seen beyond the image's borders.
    """

    agl_m: NDArray[np.float32]
    ground_m: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    outside: NDArray[np.bool_]


def render_boxes(
    boxes: list[Box], shape: tuple[int, int], scale_px_per_m: float, angle_rad: float
) -> BoxScene:
    """Renders boxes on flat ground."""
    k = scale_px_per_m * math.sin(angle_rad), scale_px_per_m * math.cos(angle_rad)
    y, x = (axis.astype(float) for axis in np.mgrid[: shape[0], : shape[1]])

    def seen(x: NDArray, y: NDArray) -> NDArray:
        return np.max([np.zeros(x.shape), *(box.ray(x, y, k) for box in boxes)], axis=0)

    ground_m = np.max([box.roof(x, y) for box in boxes], axis=0)
    image_x, image_y = x - ground_m * k[0], y - ground_m * k[1]
    outside = (image_x < -0.5) | (image_x > shape[1] - 0.5)
    outside |= (image_y < -0.5) | (image_y > shape[0] - 0.5)
    hidden = ~outside & (seen(image_x, image_y) > ground_m + 0.01)
    return BoxScene(seen(x, y).astype(np.float32), ground_m.astype(np.float32), hidden, outside)


def town(shape: tuple[int, int], seed: int = 0, highest_m: float = 40.0) -> list[Box]:
    """Buildings on a loose grid, some with slanting roofs, edges between pixels."""
    rng = np.random.default_rng(seed)
    boxes = []
    for top in range(10, shape[0] - 40, 70):
        for left in range(10, shape[1] - 40, 70):
            x, y = left + rng.uniform(0, 15), top + rng.uniform(0, 15)
            width, depth = rng.uniform(15, 40, 2)
            height_m = rng.uniform(4, highest_m)
            rise_m = rng.choice([0.0, 0.0, 0.1, 0.3])
            boxes.append(Box(x, y, x + width, y + depth, height_m, rise_m))
    return boxes
