"""Every geometric fact of the toolkit, once: angle and vector, flow, zoom, the eight symmetries.

Conventions: x = column to the right, y = row downwards. The flow direction of angle `a` is
(x, y) = (sin a, cos a): a = 0 points down the image, a = pi/2 to the right. The flow of a pixel is
`agl * scale * (sin a, cos a)` pixels and points from where a surface is seen to its ground point.
Units: metres, pixels per metre, radians, metres per pixel.
"""

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TWO_PI = 2.0 * math.pi


@overload
def angle_to_vector(angle_rad: Tensor) -> Tensor: ...
@overload
def angle_to_vector(angle_rad: float | NDArray[np.floating]) -> NDArray[np.floating]: ...
def angle_to_vector(angle_rad):  # type: ignore[no-untyped-def]
    """Unit flow direction (x, y) = (sin a, cos a): shape (...) -> (..., 2)."""
    if isinstance(angle_rad, Tensor):
        return torch.stack([torch.sin(angle_rad), torch.cos(angle_rad)], dim=-1)
    return np.stack([np.sin(angle_rad), np.cos(angle_rad)], axis=-1)


@overload
def vector_to_angle(vector: Tensor) -> Tensor: ...
@overload
def vector_to_angle(vector: NDArray[np.floating]) -> NDArray[np.floating]: ...
def vector_to_angle(vector):  # type: ignore[no-untyped-def]
    """Angle in [0, 2 pi) of a vector (x, y) of any length: shape (..., 2) -> (...)."""
    if isinstance(vector, Tensor):
        return _wrap(torch.atan2(vector[..., 0], vector[..., 1]))
    vector = np.asarray(vector)
    return _wrap(np.arctan2(vector[..., 0], vector[..., 1]))


def _wrap(angle):  # type: ignore[no-untyped-def]
    """Into [0, 2 pi); a tiny negative angle must not round up to 2 pi itself."""
    angle = angle % TWO_PI
    where = torch.where if isinstance(angle, Tensor) else np.where
    return where(angle >= TWO_PI, angle * 0.0, angle)


def wrap_angle(angle_rad: float) -> float:
    """The same direction as an angle in [0, 2 pi)."""
    return float(_wrap(np.float64(angle_rad)))


def angle_difference(a_rad: NDArray[np.floating] | float, b_rad: NDArray[np.floating] | float):  # type: ignore[no-untyped-def]
    """Absolute difference of two directions, radians in [0, pi]."""
    return np.abs((np.asarray(a_rad) - np.asarray(b_rad) + math.pi) % TWO_PI - math.pi)


def flow_px(
    agl_m: NDArray[np.floating], scale_px_per_m: float, angle_rad: float
) -> NDArray[np.floating]:
    """Vertical flow of every pixel in pixels: H x W heights -> 2 x H x W (x, y). NaN stays NaN."""
    magnitude_px = agl_m * scale_px_per_m
    direction = angle_to_vector(angle_rad)
    return np.stack([magnitude_px * direction[0], magnitude_px * direction[1]])


def flow_map(magnitude_px: Tensor, direction: Tensor) -> Tensor:
    """Flow vectors (x, y): N x 1 x H x W lengths and N x 2 directions -> N x 2 x H x W."""
    return magnitude_px * direction[:, :, None, None]


def transform_scale_angle(
    scale_px_per_m: float, angle_rad: float, linear: NDArray[np.floating]
) -> tuple[float, float]:
    """Scale and angle after a pixel map whose Jacobian is `linear`.

    Args:
        scale_px_per_m: pixels of flow per metre of height before the map.
        angle_rad: flow direction before the map.
        linear: 2 x 2, d(output pixel) / d(input pixel), in (x, y) order.

    Returns:
        (scale, angle) of the moved vector; both come from one product, so that a map that
        stretches along one axis stays exact.
    """
    moved = np.asarray(linear, dtype=np.float64) @ (scale_px_per_m * angle_to_vector(angle_rad))
    if scale_px_per_m == 0.0:  # no flow: only the direction can be moved
        moved = np.asarray(linear, dtype=np.float64) @ angle_to_vector(angle_rad)
        return 0.0, float(vector_to_angle(moved))
    return float(np.hypot(moved[0], moved[1])), float(vector_to_angle(moved))


def transform_gsd(gsd_m: float, linear: NDArray[np.floating]) -> float:
    """Metres per pixel after a pixel map: an object that grows s times has gsd / s."""
    return gsd_m / math.sqrt(abs(float(np.linalg.det(np.asarray(linear, dtype=np.float64)))))


def flow_of_lean(
    px_per_m: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and angle of flow by how far an image moves a point as its height grows.

    Args:
        px_per_m: d(column, row) / d(height) at fixed longitude and latitude, (..., 2). Flow leads
            back from where the point is seen to its ground point: it is minus this vector.

    Returns:
        (scale in pixels per metre, angle in [0, 2 pi)), each of shape (...).
    """
    flow = -np.asarray(px_per_m, dtype=np.float64)
    return np.hypot(flow[..., 0], flow[..., 1]), np.asarray(vector_to_angle(flow), np.float64)


def flow_of_sensor(
    azimuth_rad: float, incidence_rad: float, px_per_ground_m: NDArray[np.floating]
) -> tuple[float, float]:
    """Scale and angle of flow in an image that lies on the map, by where its sensor stood.

    A point at height h is mapped h tan(incidence) away from the sensor, so flow leads towards it.
    North up, that is angle = pi - azimuth and scale = tan(incidence) / gsd.

    Args:
        azimuth_rad: of the sensor as seen from the ground, from the map's north over east.
        incidence_rad: of the line of sight at the ground, from the vertical, in [0, pi/2).
        px_per_ground_m: 2 x 2, d(column, row) / d(east, north) in pixels per metre.

    Returns:
        (scale in pixels per metre, angle in [0, 2 pi)).
    """
    # On a "map" of one metre per pixel, x east and y north, that direction has this angle:
    return transform_scale_angle(math.tan(incidence_rad), azimuth_rad, px_per_ground_m)


@dataclass(frozen=True)
class Symmetry:
    """One of the eight symmetries of the square, as transposition followed by two flips.

    Every symmetry is `transpose` (or not), then a flip of columns, then a flip of rows; so any
    image shape works and nothing is interpolated.
    """

    name: str
    transpose: bool
    flip_x: bool
    flip_y: bool

    @property
    def linear(self) -> NDArray[np.float64]:
        """2 x 2 map of image vectors in (x, y): exactly how a flow vector moves."""
        flips = np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0])
        return flips @ (np.array([[0.0, 1.0], [1.0, 0.0]]) if self.transpose else np.eye(2))

    @property
    def inverse(self) -> "Symmetry":
        """The symmetry that undoes this one."""
        linear = self.linear.T
        return next(s for s in SYMMETRIES if np.array_equal(s.linear, linear))

    def apply_numpy(self, array: NDArray) -> NDArray:
        """Moves an H x W [x C] array; a view of the input where possible."""
        if self.transpose:
            array = array.swapaxes(0, 1)
        if self.flip_x:
            array = array[:, ::-1]
        return array[::-1] if self.flip_y else array

    def apply_torch(self, tensor: Tensor) -> Tensor:
        """Moves a tensor of shape (..., H, W)."""
        if self.transpose:
            tensor = tensor.transpose(-1, -2)
        dims = [dim for dim, flip in ((-1, self.flip_x), (-2, self.flip_y)) if flip]
        return torch.flip(tensor, dims) if dims else tensor

    def map_vectors(self, vectors: Tensor) -> Tensor:
        """Moves image vectors (..., 2) in (x, y) as the image moves them."""
        linear = torch.as_tensor(self.linear, dtype=vectors.dtype, device=vectors.device)
        return vectors @ linear.T


SYMMETRIES: tuple[Symmetry, ...] = (
    Symmetry("identity", False, False, False),
    Symmetry("fliplr", False, True, False),
    Symmetry("flipud", False, False, True),
    Symmetry("rot180", False, True, True),
    Symmetry("transpose", True, False, False),
    Symmetry("rot90", True, False, True),  # counter-clockwise, as numpy.rot90
    Symmetry("rot270", True, True, False),
    Symmetry("antitranspose", True, True, True),
)
SYMMETRY: dict[str, Symmetry] = {symmetry.name: symmetry for symmetry in SYMMETRIES}
