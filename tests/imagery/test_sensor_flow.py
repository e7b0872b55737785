"""Flow from the sensor: against the true flow of real views, and synthetic maps of any turn."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest

from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.geometry import angle_difference, wrap_angle
from geopose.imagery.files.raster import open_raster
from geopose.imagery.place.flow import (
    gsd_at,
    map_flow,
    metres_per_degree,
    rpc_flow,
    sensor_direction,
    sensor_flow,
)
from geopose.imagery.place.georeference import Georeference
from geopose.imagery.place.rpc import Rpc, read_rpc_json
from tests.made_up_rpc import made_up_rpc
from tests.tiny_data import REALDATA

pytest.importorskip("rasterio", reason="rasterio is not installed")
JAX = REALDATA / "jax068_wv3"
real = pytest.mark.skipif(not JAX.exists(), reason="../shared/realdata is absent")
VIEWS = ("001", "003", "005", "007", "010", "012", "014", "016", "019")
GROUND_M = -20.0
FOOT_M = 1200 / 3937


def _north_up(gsd: float, crs: str = "EPSG:32617") -> Georeference:
    return Georeference(crs, (gsd, 0.0, 436000.0, 0.0, -gsd, 3358000.0))


def _deg(a_rad: float, b_rad: float) -> float:
    return math.degrees(float(angle_difference(a_rad, b_rad)))


@real
@pytest.mark.parametrize("view", VIEWS)
def test_rpcs_give_the_true_flow_and_gsd_of_real_views(view: str) -> None:
    true_scale, true_angle = read_vflow(JAX / f"train/JAX_068{view}_VFLOW.json")
    with open_raster(JAX / f"train/JAX_068{view}_RGB.tif") as image:
        flow = sensor_flow(image.georeference, *image.shape, GROUND_M)
        corner = sensor_flow(image.georeference.cropped(500, 400), 200, 150, GROUND_M)
        zoomed = sensor_flow(
            image.georeference.scaled(2.0), 2 * image.height, 2 * image.width, GROUND_M
        )
    assert flow.scale_px_per_m == pytest.approx(true_scale, abs=0.002)
    assert _deg(flow.angle_rad, true_angle) < 0.1
    assert corner.scale_px_per_m == pytest.approx(true_scale, abs=0.002)
    assert zoomed.scale_px_per_m == pytest.approx(2 * true_scale, abs=0.004)
    assert zoomed.gsd_m == pytest.approx(flow.gsd_m / 2)
    assert flow.field is None
    assert flow.spread_px < 0.35
    with (JAX / "views.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["id"] == f"JAX_068{view}")
    assert flow.gsd_m == pytest.approx(float(row["gsd_m"]), rel=0.01)
    rpc = read_rpc_json(JAX / f"rpc_ba/JAX_068_{view}_RGB.json")
    adjusted = sensor_flow(Georeference(rpc=rpc), *image.shape, GROUND_M)
    assert adjusted.scale_px_per_m == pytest.approx(true_scale, abs=0.002)
    assert _deg(adjusted.angle_rad, true_angle) < 0.1
    azimuth, incidence = sensor_direction(rpc, image.width / 2, image.height / 2, GROUND_M)
    assert incidence == pytest.approx(float(row["incidence_deg"]), abs=0.1)
    assert abs((azimuth - float(row["sensor_azimuth_deg"]) + 180) % 360 - 180) < 0.5


@real
@pytest.mark.parametrize(
    ("name", "scale", "angle", "gsd", "incidence"),
    [
        ("wv3_20.NTF", 0.879, 4.744, 0.333, 16.6),
        ("wv3_30.NTF", 1.157, 3.682, 0.353, 23.1),
        ("PHR1B_P_201709281038393_SEN_PRG_FC_178609-001.tif", 0.536, 5.547, 0.526, 16.0),
    ],
)
def test_flow_of_other_sensors(
    name: str, scale: float, angle: float, gsd: float, incidence: float
) -> None:
    with open_raster(REALDATA / "wv3_arg_nitf" / name) as image:
        assert image.georeference.transform is None
        chip = sensor_flow(image.georeference, *image.shape)
        rpc = image.georeference.rpc
    assert rpc is not None
    # Those figures are of the middle of the scene that the chip was cut from.
    column, row, _, _, height = rpc.offsets
    found = rpc_flow(rpc, column, row, height)
    assert float(found[0]) == pytest.approx(scale, abs=0.001)
    assert _deg(float(found[1]), angle) < 0.1
    assert gsd_at(Georeference(rpc=rpc), column, row, height) == pytest.approx(gsd, rel=0.01)
    assert sensor_direction(rpc, column, row, height)[1] == pytest.approx(incidence, abs=0.1)
    assert chip.field is None
    whole = sensor_flow(Georeference(rpc=rpc), round(2 * row), round(2 * column))
    assert whole.spread_px > 3.0
    assert whole.field is not None


def test_flow_is_minus_the_lean_that_the_polynomial_states() -> None:
    rpc = made_up_rpc(lean=(0.6, -0.3), bend=0.0)
    scale, angle = rpc_flow(rpc, np.array([0.0, 399.0]), np.array([0.0, 299.0]), 55.0)
    np.testing.assert_allclose(scale, math.hypot(0.6, 0.3))
    np.testing.assert_allclose(angle, math.atan2(-0.6, 0.3) % (2 * math.pi))


def test_a_long_strip_gets_a_field_and_a_crop_of_it_one_vector() -> None:
    strip = _strip()
    flow = sensor_flow(Georeference(rpc=strip), 40_000, 4_000)
    assert flow.spread_px > 1.0
    assert flow.field is not None
    rng = np.random.default_rng(2)
    column, row = rng.uniform(0, 4_000, 200), rng.uniform(0, 40_000, 200)
    lon, lat = strip.localize(column, row, 30.0)
    vectors = flow.field.at(column, row)
    roof = np.stack(strip.project(lon, lat, 130.0), -1)
    np.testing.assert_allclose(100.0 * vectors, np.stack([column, row], -1) - roof, atol=0.6)
    np.testing.assert_allclose(flow.field.at(-9, -9), flow.field.at(0, 0))
    piece = sensor_flow(Georeference(rpc=strip.shifted(1_000, 20_000)), 1_000, 1_000)
    assert piece.field is None


def _strip() -> Rpc:
    """40000 rows along which the sensor nods: lean changes with latitude."""
    rpc = made_up_rpc(size=(4_000, 40_000), turn=0.0, lean=(0.6, -0.3), bend=0.0)
    wide = np.array([1.0, 1.0, 10.0, 50.0, 1.0])
    coefficients = rpc.coefficients.copy()
    coefficients[:, 1] *= 10.0
    coefficients[:, 2] *= 50.0
    coefficients[2, 6] = 0.1 * coefficients[2, 3]  # of P H: a tenth of the lean at either end
    return replace(rpc, scales=rpc.scales * wide, coefficients=coefficients)


@pytest.mark.parametrize("azimuth", [0.0, 21.0, 137.2, 257.5, 359.0])
def test_north_up_maps_follow_the_plain_formula(azimuth: float) -> None:
    flow = map_flow(_north_up(0.5), 600, 800, azimuth, 25.0)
    assert flow.scale_px_per_m == pytest.approx(math.tan(math.radians(25.0)) / 0.5)
    assert _deg(flow.angle_rad, wrap_angle(math.pi - math.radians(azimuth))) < 1e-6
    assert flow.gsd_m == pytest.approx(0.5)


@pytest.mark.parametrize(
    "linear",
    [
        (0.5, 0.0, 0.0, 0.5),  # south up
        (-0.5, 0.0, 0.0, -0.5),  # mirrored
        (0.0, 0.5, 0.5, 0.0),  # turned by 90 degrees
        (0.4, 0.3, 0.3, -0.4),  # rotated
        (0.5, 0.1, 0.05, -0.4),  # sheared, other pixels along than across
    ],
)
def test_turned_and_sheared_maps_lead_from_the_roof_to_its_ground(
    linear: tuple[float, float, float, float],
) -> None:
    a, b, d, e = linear
    place = Georeference("EPSG:32617", (a, b, 436000.0, d, e, 3358000.0))
    azimuth, incidence, height = math.radians(137.2), math.radians(28.0), 40.0
    flow = map_flow(place, 600, 800, 137.2, 28.0)
    ground = place.to_map(np.array(100.0), np.array(50.0))
    away = -height * math.tan(incidence)
    seen = place.from_map(
        ground[0] + away * math.sin(azimuth), ground[1] + away * math.cos(azimuth)
    )
    shift = height * flow.scale_px_per_m
    assert seen[0] + shift * math.sin(flow.angle_rad) == pytest.approx(100.0)
    assert seen[1] + shift * math.cos(flow.angle_rad) == pytest.approx(50.0)


def test_gsd_in_every_unit() -> None:
    centre = (399.5, 299.5)
    assert gsd_at(_north_up(0.5), *centre) == pytest.approx(0.5)
    feet = Georeference("EPSG:2236", (1.0, 0.0, 446000.0, 0.0, -1.0, 2180000.0))  # US feet
    assert gsd_at(feet, *centre) == pytest.approx(FOOT_M)
    degrees = Georeference("EPSG:4326", (5e-6, 0.0, -58.6, 0.0, -5e-6, -34.5))
    lon_m, lat_m = metres_per_degree(-34.5)
    assert gsd_at(degrees, *centre) == pytest.approx(5e-6 * math.sqrt(lon_m * lat_m), rel=1e-4)
    mercator = Georeference("EPSG:3857", (0.6, 0.0, 0.0, 0.0, -0.6, 8_399_737.9))  # at 60 degrees
    assert gsd_at(mercator, *centre) == pytest.approx(0.3, rel=0.01)
    oblong = Georeference("EPSG:32617", (0.5, 0.0, 436000.0, 0.0, -0.32, 3358000.0))
    assert gsd_at(oblong, *centre) == pytest.approx(0.4)
    # The textbook's degree at the equator and at 45 degrees.
    assert metres_per_degree(0.0) == pytest.approx((111_319.49, 110_574.28), abs=0.01)
    assert metres_per_degree(45.0) == pytest.approx((78_846.84, 111_131.78), abs=0.01)


def test_a_map_and_rpcs_of_the_same_view_agree() -> None:
    """The sensor's direction by RPCs, put to work on a map: flow in metres is the same."""
    rpc = made_up_rpc()
    azimuth, incidence = sensor_direction(rpc, 200, 150, 30.0)
    flow = map_flow(_north_up(0.25), 400, 300, azimuth, incidence)
    own = sensor_flow(Georeference(rpc=rpc), 300, 400, 30.0)
    # The view is turned and not sheared, so metres of lean are metres of lean.
    assert flow.scale_px_per_m * 0.25 == pytest.approx(own.scale_px_per_m * own.gsd_m, rel=0.01)


def test_what_cannot_be_answered_is_one_line() -> None:
    with pytest.raises(InputError, match="azimuth and incidence"):
        sensor_flow(_north_up(0.5), 10, 10)
    with pytest.raises(InputError, match="incidence"):
        map_flow(_north_up(0.5), 10, 10, 10.0, 90.0)
    with pytest.raises(InputError, match="nothing of its place"):
        map_flow(Georeference(), 10, 10, 10.0, 20.0)
    far = Georeference(rpc=made_up_rpc(bend=0.05))
    with pytest.raises(InputError, match="do not reach"):
        sensor_flow(far, 10, 10**9)
