"""An RPC whose polynomials are known: an affine view of a plane, bent a little, any turn."""

import math

import numpy as np

from geopose.imagery.place.rpc import Rpc

LON, LAT = -58.6, -34.5
DEGREE_M = 111_000.0  # what the made-up view takes for a degree of latitude


def made_up_rpc(
    turn: float = 0.4,
    gsd_m: float = 0.5,
    lean: tuple[float, float] = (0.6, -0.3),
    bend: float = 1e-4,
    size: tuple[int, int] = (400, 300),
) -> Rpc:
    """A view in which height h moves a point by `lean` px per metre.

    Args:
        turn: of the image against north, radians.
        gsd_m: metres of a pixel.
        lean: (x, y) px per metre, before the bend.
        bend: of the quadratic and cubic terms and of the denominators.
        size: (width, height) of the image, whose middle is at LON, LAT and height 30 m.
    """
    half = np.array([size[0] / 2.0, size[1] / 2.0])
    scales = np.array([half[0], half[1], 0.002, 0.002, 100.0])
    metres = np.array([0.002 * DEGREE_M * math.cos(math.radians(LAT)), 0.002 * DEGREE_M])
    cos, sin = math.cos(turn), math.sin(turn)
    east, north = np.array([cos, sin]) / gsd_m, np.array([sin, -cos]) / gsd_m
    coefficients = np.zeros((4, 20))
    for k in range(2):
        top = coefficients[2 * k]
        top[1], top[2] = east[k] * metres[0] / half[k], north[k] * metres[1] / half[k]
        top[3] = lean[k] * 100.0 / half[k]
        top[4:] = bend * np.cos(np.arange(16) + k)
        coefficients[2 * k + 1] = bend * np.sin(np.arange(20) + k)
        coefficients[2 * k + 1, 0] = 1.0
    offsets = np.array([half[0] - 0.5, half[1] - 0.5, LON, LAT, 30.0])
    return Rpc(offsets, scales, coefficients)
