"""Gentle terrain under a city: slopes, hills and valleys, tens of metres over a scene.

In: a random stream. Out: a `Relief`: terrain heights and slopes anywhere.

Relief displaces nothing. The challenge's images are corrected for the terrain, so the bare ground
is where the map has it, and flow is height above ground times scale: one scale and one angle for
the whole image say all. What the terrain still does is seen in light: ground that faces the sun is
brighter, and shadows are short uphill and long downhill. Buildings follow the ground: every corner
stands at its height above the terrain under it. What is left out is the flow of a lean that ends on
ground of another level (slope times lean, a metre or less here): no pair of scale and angle has it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
_ROOF_HALF_M = 30.0  # roofs of up to twice this width are planes where the terrain curves


@dataclass(frozen=True)
class Relief:
    """A sloping plane with hills and valleys on it.

    Attributes:
        slope: rise of the plane along x and y, metres per metre.
        hills: (x, y, radius, height) of each in metres; a negative height is a valley.
    """

    slope: tuple[float, float] = (0.0, 0.0)
    hills: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def flat(self) -> bool:
        """Whether there is none."""
        return self.slope == (0.0, 0.0) and not self.hills

    @property
    def bias_m(self) -> float:
        """How far the terrain departs from a plane under a large roof."""
        return sum(abs(height) / r**2 for *_, r, height in self.hills) * _ROOF_HALF_M**2 / 2

    def height_m(self, x_m: NDArray, y_m: NDArray) -> Map:
        """Terrain height at ground points, float32; the level of zero means nothing."""
        total = np.float32(self.slope[0]) * x_m + np.float32(self.slope[1]) * y_m
        for *_, hill in self._bumps(x_m, y_m):
            total = total + hill
        return np.asarray(total, np.float32)

    def slopes(self, x_m: NDArray, y_m: NDArray) -> tuple[Map, Map]:
        """Rise of the terrain along x and y at ground points."""
        along_x, along_y = np.float32(self.slope[0]), np.float32(self.slope[1])
        for dx, dy, radius, hill in self._bumps(x_m, y_m):
            along_x = along_x - hill * dx / np.float32(radius**2)
            along_y = along_y - hill * dy / np.float32(radius**2)
        shape = np.broadcast_shapes(np.shape(x_m), np.shape(y_m))
        maps = (np.broadcast_to(np.asarray(v, np.float32), shape) for v in (along_x, along_y))
        return next(maps), next(maps)

    def _bumps(self, x_m: NDArray, y_m: NDArray) -> list[tuple[NDArray, NDArray, float, NDArray]]:
        """(x and y from the centre, radius, height here) of each hill; smooth (Gaussian)."""
        bumps = []
        for x, y, radius, height in self.hills:
            dx, dy = x_m - np.float32(x), y_m - np.float32(y)
            # One exponential along each axis: on a grid these are vectors.
            parts = (np.exp(-(d * d) / np.float32(2 * radius**2)) for d in (dx, dy))
            bumps.append((dx, dy, radius, np.float32(height) * next(parts) * next(parts)))
        return bumps


FLAT = Relief()


def drawn_relief(rng: np.random.Generator) -> Relief:
    """One relief of the preset `real`: none in a third of the scenes."""
    if rng.random() < 0.35:
        return FLAT
    steep, turn = float(rng.uniform(0.0, 0.06)), float(rng.uniform(0, 2 * math.pi))
    hills = []
    for _ in range(int(rng.integers(1, 4))):
        radius = float(rng.uniform(180.0, 420.0))
        grade = float(rng.uniform(0.02, 0.09)) * (1.0 if rng.random() < 0.5 else -1.0)
        x, y = (float(v) for v in rng.uniform(-150.0, 900.0, 2))
        hills.append((x, y, radius, grade * radius / 0.6065))  # its steepest grade is at `radius`
    return Relief((steep * math.cos(turn), steep * math.sin(turn)), tuple(hills))
