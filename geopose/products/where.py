"""Where and from where an image was taken: its footprint and its sensor's direction.

In: a predicted image and the height of its ground. Out: GeoJSON in WGS 84, degrees. None where it
is not known, which is no error here: an image without a place has heights, too.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.geometry import angle_to_vector
from geopose.imagery.place.flow import ground_jacobian, rpc_flow
from geopose.imagery.place.georeference import Georeference
from geopose.products.predicted import PredictedImage

_HALF_TURN = 180.0
Ring = list[tuple[float, float]]


@dataclass(frozen=True)
class Footprint:
    """What an image covers.

    Attributes:
        geometry: GeoJSON Polygon, counter-clockwise, or MultiPolygon where it crosses 180 degrees.
        bbox: west, south, east, north; west > east where it crosses 180 degrees.
    """

    geometry: dict[str, Any]
    bbox: list[float]


def ground_height(place: Georeference, ground: object = None) -> float:
    """Ellipsoidal metres to go by: what is given as a number, else the middle of the RPCs'."""
    if isinstance(ground, int | float):
        return float(ground)
    return 0.0 if place.rpc is None else float(place.rpc.offsets[4])


def footprint(image: PredictedImage, ground_m: float) -> Footprint | None:
    """The outer corners of an image on the ground; None = unknown."""
    if image.georeference.kind == "none":
        return None
    height, width = image.shape
    columns = np.array([-0.5, -0.5, width - 0.5, width - 0.5])
    rows = np.array([-0.5, height - 0.5, height - 0.5, -0.5])
    try:
        lon, lat = image.georeference.to_lonlat(columns, rows, ground_m)
    except InputError:  # control points on one line, a CRS that nobody knows
        return None
    if not np.isfinite([lon, lat]).all() or np.abs(lat).max() > 90.0:
        return None
    lon = lon[0] + (lon - lon[0] + _HALF_TURN) % (2 * _HALF_TURN) - _HALF_TURN  # in one piece
    return _footprint(lon, lat)


def _footprint(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> Footprint:
    ring = list(zip(lon.tolist(), lat.tolist(), strict=True))
    if _area(ring) < 0:
        ring.reverse()
    middle = (max(lon) + min(lon)) / 2
    shift = 2 * _HALF_TURN * math.floor((middle + _HALF_TURN) / (2 * _HALF_TURN))
    ring = [(x - shift, y) for x, y in ring]
    west, east = min(x for x, _ in ring), max(x for x, _ in ring)
    edge = _HALF_TURN if east > _HALF_TURN else -_HALF_TURN
    south, north = float(min(lat)), float(max(lat))
    if not west < edge < east:
        return Footprint(_polygon([ring]), [west, south, east, north])
    turn = 2 * _HALF_TURN
    near, far = _cut(ring, edge, -1.0), _cut(ring, edge, 1.0)
    if edge > 0:  # beyond 180 it goes on at -180
        far = [(x - turn, y) for x, y in far]
        return Footprint(_polygon([near, far]), [west, south, east - turn, north])
    near = [(x + turn, y) for x, y in near]
    return Footprint(_polygon([near, far]), [west + turn, south, east, north])


def _area(ring: Ring) -> float:
    """Twice the signed area, positive if the ring runs counter-clockwise."""
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)


def _cut(ring: Ring, edge: float, side: float) -> Ring:
    """The part of a convex ring beyond a meridian (side 1) or before it (-1)."""
    kept: Ring = []
    for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
        if side * (a[0] - edge) >= 0:
            kept.append(a)
        if (a[0] - edge) * (b[0] - edge) < 0:
            share = (edge - a[0]) / (b[0] - a[0])
            kept.append((edge, a[1] + share * (b[1] - a[1])))
    return kept


def _polygon(rings: list[Ring]) -> dict[str, Any]:
    closed = [[[list(point) for point in [*ring, ring[0]]]] for ring in rings]
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}


def sensor_angles(image: PredictedImage, ground_m: float) -> tuple[float, float] | None:
    """(azimuth, incidence) in degrees of the sensor as seen from the image's centre.

    By its RPCs, or else by what was said of the sensor; None where neither is known. On the ground
    flow leads tan(incidence) metres per metre of height towards the sensor.
    """
    place = image.georeference
    column, row = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    if place.kind == "none":
        return None
    if place.rpc is not None:
        scale, angle = (float(part) for part in rpc_flow(place.rpc, column, row, ground_m))
    elif image.flows.sensor is not None:
        scale, angle = image.flows.sensor.scale_px_per_m, image.flows.sensor.angle_rad
    else:
        return None
    jacobian = ground_jacobian(place, column, row, ground_m)
    east, north = jacobian @ (scale * angle_to_vector(angle))
    if not math.isfinite(east + north):
        return None
    azimuth = math.degrees(math.atan2(east, north)) % 360.0
    return azimuth, math.degrees(math.atan(math.hypot(east, north)))


def north_in_image(image: PredictedImage, ground_m: float) -> tuple[float, float] | None:
    """Unit vector (x, y) of the image that points north at its centre; None = unknown."""
    if image.georeference.kind == "none":
        return None
    column, row = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    try:
        jacobian = ground_jacobian(image.georeference, column, row, ground_m)
        x, y = np.linalg.solve(jacobian, [0.0, 1.0])
    except (InputError, np.linalg.LinAlgError):
        return None
    length = math.hypot(x, y)
    return (float(x / length), float(y / length)) if 0 < length < math.inf else None
