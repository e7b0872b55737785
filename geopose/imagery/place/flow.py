"""Flow and ground sampling distance from what is known of the sensor, without a network.

In: a georeference (RPCs, or a map's transform with the sensor's azimuth and incidence).
Out: scale (pixels per metre), angle (radians, as in geopose/geometry.py), gsd (metres per pixel).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.geometry import flow_of_lean, flow_of_sensor
from geopose.imagery.place.field import FlowField
from geopose.imagery.place.georeference import WGS84, Georeference, change_crs, parse_crs
from geopose.imagery.place.rpc import Rpc

__all__ = [
    "FlowField",
    "SensorFlow",
    "ground_jacobian",
    "gsd_at",
    "map_flow",
    "metres_per_degree",
    "rpc_flow",
    "sensor_direction",
    "sensor_flow",
]

# One vector does for an image while it puts the roof of a house of 100 m, about the tallest of the
# challenge's cities, within a pixel of where the flow of its own place would put it: rectification
# rounds to whole pixels anyhow. That bounds the angle too, by as much as it matters.
TALL_M = 100.0
ONE_VECTOR_PX = 1.0
_NODES = 17  # along each side of a flow field: RPCs are cubic, so a coarse grid is exact enough
_WGS84_A_M = 6378137.0
_WGS84_E2 = 6.69437999014e-3
_MAP_SCALE_ERROR = 0.01  # of a projection whose metres we still take for metres of the ground

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SensorFlow:
    """Flow of an image as its sensor states it.

    Attributes:
        scale_px_per_m: at the image's centre.
        angle_rad: the same, in [0, 2 pi).
        gsd_m: metres of ground per pixel there.
        spread_px: how far one vector misses the true flow of a height of 100 m at most, anywhere
            in the image and up to that height above the ground, in pixels.
        field: flow by place, where `spread_px` exceeds 1; None = the one vector is good.
    """

    scale_px_per_m: float
    angle_rad: float
    gsd_m: float
    spread_px: float = 0.0
    field: FlowField | None = None


def rpc_flow(rpc: Rpc, column: Any, row: Any, height_m: Any) -> tuple[Array, Array]:
    """Flow at pixels: minus d(column, row) / d(height) at fixed longitude and latitude.

    Args:
        rpc: the image's model.
        column: pixels, 0 = centre of the first; all three broadcast.
        row: the same.
        height_m: ellipsoidal metres.

    Returns:
        (scale in px per metre, angle in [0, 2 pi)); NaN outside the model's region.
    """
    lon, lat = rpc.localize(column, row, height_m)
    return flow_of_lean(rpc.derivatives(lon, lat, height_m)[..., 2])


def sensor_flow(
    georeference: Georeference, height: int, width: int, ground_m: float | None = None
) -> SensorFlow:
    """Flow and gsd of an image by its RPCs.

    Args:
        georeference: has RPCs.
        height: of the image, pixels.
        width: the same.
        ground_m: ellipsoidal metres of the ground; None = the middle of the RPCs' heights, which
            changes flow by some thousandths of a pixel per metre.

    Raises:
        InputError: no RPCs, or they do not reach to this image.
    """
    rpc = georeference.rpc
    if rpc is None:
        raise InputError(
            "the image has no RPCs to take its flow from; give the sensor's azimuth and incidence"
        )
    ground = float(rpc.offsets[4]) if ground_m is None else ground_m
    centre = (width - 1) / 2, (height - 1) / 2
    scale, angle = (float(part) for part in rpc_flow(rpc, *centre, ground))
    gsd = gsd_at(georeference, *centre, ground)
    if not math.isfinite(scale + gsd):
        raise InputError(
            f"the RPCs do not reach to the image's centre at {ground} m; check the height, and "
            "whether they belong to this image"
        )
    rows, columns = (_nodes(size) for size in (height, width))
    vector = scale * np.array([math.sin(angle), math.cos(angle)])
    at_ground = _flow_vectors(rpc, columns, rows, ground)
    above = _flow_vectors(rpc, columns, rows, ground + TALL_M)
    misses = np.hypot(*np.moveaxis(np.stack([at_ground, above]) - vector, -1, 0))
    spread = TALL_M * float(np.nanmax(misses))
    # A wall reaches from the ground to the roof: the mean of both is its flow.
    field = FlowField(columns, rows, (at_ground + above) / 2)
    return SensorFlow(scale, angle, gsd, spread, field if spread > ONE_VECTOR_PX else None)


def map_flow(
    georeference: Georeference, height: int, width: int, azimuth_deg: float, incidence_deg: float
) -> SensorFlow:
    """Flow and gsd of an image on the map by the sensor's place in the sky.

    Args:
        georeference: has a transform or GCPs in a CRS; any turn, shear or direction of north.
        height: of the image, pixels.
        width: the same.
        azimuth_deg: of the sensor seen from the ground, degrees clockwise from the map's north.
        incidence_deg: of the line of sight at the ground, degrees from the vertical, in [0, 90).
            (Off-nadir angles at the satellite are smaller: by about a tenth from 600 km.)

    Raises:
        InputError: angles out of range, or no georeference.
    """
    if not (0.0 <= incidence_deg < 90.0 and math.isfinite(azimuth_deg)):
        raise InputError(
            f"azimuth {azimuth_deg}, incidence {incidence_deg}: expected degrees, incidence from 0 "
            "to below 90"
        )
    centre = (width - 1) / 2, (height - 1) / 2
    to_pixels = np.linalg.inv(ground_jacobian(georeference, *centre))
    scale, angle = flow_of_sensor(math.radians(azimuth_deg), math.radians(incidence_deg), to_pixels)
    return SensorFlow(scale, angle, gsd_at(georeference, *centre))


def sensor_direction(rpc: Rpc, column: float, row: float, height_m: float) -> tuple[float, float]:
    """(azimuth, incidence) in degrees of the sensor as seen from a pixel's ground point.

    The inverse of `map_flow`: flow, laid on the ground, leads tan(incidence) metres per metre of
    height towards the sensor.
    """
    lon, lat = rpc.localize(column, row, height_m)
    flow = -rpc.derivatives(lon, lat, height_m)[..., 2]
    east, north = ground_jacobian(Georeference(rpc=rpc), column, row, height_m) @ flow
    return math.degrees(math.atan2(east, north)) % 360.0, math.degrees(
        math.atan(math.hypot(east, north))
    )


def gsd_at(georeference: Georeference, column: float, row: float, height_m: float = 0.0) -> float:
    """Metres of ground from a pixel to the next one, the geometric mean of both axes.

    Args:
        georeference: RPCs, transform or GCPs.
        column: pixels, 0 = centre of the first.
        row: the same.
        height_m: ellipsoidal metres of the ground; for RPCs.

    Raises:
        InputError: no georeference.
    """
    jacobian = ground_jacobian(georeference, column, row, height_m)
    return float(np.sqrt(np.prod(np.hypot(jacobian[0], jacobian[1]))))


def ground_jacobian(
    georeference: Georeference, column: float, row: float, height_m: float = 0.0
) -> Array:
    """d(east, north) in metres of ground / d(column, row) in pixels: 2 x 2.

    Of a projected CRS the map's own axes count as east and north and its units (metres, feet) as
    ground, but for projections that are far from true to scale (Web Mercator: 1 / cos latitude).

    Raises:
        InputError: no georeference.
    """
    if georeference.rpc is not None:
        lon, lat = georeference.rpc.localize(column, row, height_m)
        by_degrees = georeference.rpc.derivatives(lon, lat, height_m)[..., :2]
        return np.diag(metres_per_degree(float(lat), height_m)) @ np.linalg.inv(by_degrees)
    half = np.array([-0.5, 0.5, 0.0, 0.0])
    x, y = georeference.to_map(column + half, row + half[::-1])
    on_map = np.array([[x[1] - x[0], x[2] - x[3]], [y[1] - y[0], y[2] - y[3]]])
    return np.diag(_metres_per_unit(georeference, column, row)) @ on_map


def metres_per_degree(lat_deg: float, height_m: float = 0.0) -> tuple[float, float]:
    """Metres of a degree of longitude and of latitude at a place on the WGS 84 ellipsoid.

    From its radii of curvature: prime vertical N = a / w, meridian M = a (1 - e2) / w^3 with
    w = sqrt(1 - e2 sin2(latitude)) (NGA.STND.0036, the standard of WGS 84).
    """
    w = math.sqrt(1.0 - _WGS84_E2 * math.sin(math.radians(lat_deg)) ** 2)
    vertical, meridian = _WGS84_A_M / w, _WGS84_A_M * (1.0 - _WGS84_E2) / w**3
    along = (vertical + height_m) * math.cos(math.radians(lat_deg))
    return math.radians(along), math.radians(meridian + height_m)


def _metres_per_unit(georeference: Georeference, column: float, row: float) -> tuple[float, float]:
    """Metres of ground of one unit of the CRS along x and along y, at a pixel."""
    crs = parse_crs(georeference.crs or "")
    lat = georeference.to_lonlat(column, row, 0.0)[1]
    along_lon, along_lat = metres_per_degree(float(lat))
    if crs.is_geographic:
        degrees = math.degrees(crs.units_factor[1])
        return along_lon * degrees, along_lat * degrees
    metres = float(crs.linear_units_factor[1])
    x, y = georeference.to_map(np.array(column), np.array(row))
    step = 10.0 / metres * np.array([[-0.5, 0.5, 0.0, 0.0], [0.0, 0.0, -0.5, 0.5]])
    lons, lats = change_crs(georeference.crs or "", WGS84, x + step[0], y + step[1])
    truth = (
        np.hypot((lons[1::2] - lons[::2]) * along_lon, (lats[1::2] - lats[::2]) * along_lat) / 10.0
    )
    ratio = np.where(np.abs(truth - 1.0) > _MAP_SCALE_ERROR, truth, 1.0)
    return metres * float(ratio[0]), metres * float(ratio[1])


def _flow_vectors(rpc: Rpc, columns: Array, rows: Array, height_m: float) -> Array:
    lon, lat = rpc.localize(columns[None, :], rows[:, None], height_m)
    return -rpc.derivatives(lon, lat, height_m)[..., 2]


def _nodes(size: int) -> Array:
    return np.linspace(0.0, max(size - 1, 1), _NODES)
