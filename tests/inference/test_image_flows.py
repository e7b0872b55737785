"""One flow for an image: by tiles that show it, or by the sensor."""

import math

import numpy as np
import pytest

from geopose.errors import InputError
from geopose.imagery.place.flow import SensorFlow
from geopose.inference.images.flows import TileFlow, choose, combine
from geopose.inference.images.tiling import Tiling

TILING = Tiling.of((128, 128), 64, 16)


def tile(number, scale, degrees, signal):
    angle = math.radians(degrees)
    return TileFlow(number, scale, (math.sin(angle), math.cos(angle)), signal)


def test_flat_tiles_do_not_count():
    flow, scale_spread, angle_spread = combine([tile(0, 1.2, 30, 500), tile(1, 9.0, 200, 0)])
    assert flow.scale_px_per_m == pytest.approx(1.2)
    assert math.degrees(flow.angle_rad) == pytest.approx(30)
    assert scale_spread == pytest.approx(0)
    assert angle_spread == pytest.approx(0, abs=1e-6)


def test_directions_meet_across_north():
    flow, _, spread = combine([tile(0, 1.0, 350, 10), tile(1, 1.0, 10, 10)])
    assert math.degrees(flow.angle_rad) % 360 == pytest.approx(0, abs=1e-6)
    assert math.degrees(spread) == pytest.approx(10, rel=0.02)


def test_an_image_of_ground_has_the_plain_mean():
    flow, spread, _ = combine([tile(0, 1.0, 90, 0), tile(1, 2.0, 90, 0)])
    assert flow.scale_px_per_m == pytest.approx(1.5)
    assert spread == pytest.approx(0.5)


def test_no_direction_anywhere():
    assert combine([TileFlow(0, 1.0, (math.nan, math.nan), 5)])[0] is None
    assert combine([tile(0, 1.0, 0, 5), tile(1, 1.0, 180, 5)])[0] is None


def test_the_sensor_wins_unless_the_model_is_wanted():
    tiles, sensor = [tile(0, 1.0, 90, 9)], SensorFlow(0.8, math.radians(100), 0.35, 0.2)
    flows, warnings = choose(tiles, sensor, False, "auto", TILING, False)
    assert (flows.source, flows.used.scale_px_per_m) == ("rpc", 0.8)
    assert (flows.model.scale_px_per_m, flows.sensor_spread_px) == (1.0, 0.2)
    assert warnings == []
    assert choose(tiles, sensor, True, "auto", TILING, False)[0].source == "sensor"
    assert choose(tiles, sensor, False, "model", TILING, False)[0].source == "model"
    assert choose(tiles, None, False, "auto", TILING, False)[0].source == "model"


def test_a_disagreement_is_said():
    sensor = SensorFlow(0.8, math.radians(190), 0.35)
    _, (line,) = choose([tile(0, 1.0, 90, 9)], sensor, False, "auto", TILING, False)
    assert "1.00 px/m at 90 degrees" in line
    assert "0.80 px/m at 190 degrees" in line
    assert "differ by 100 degrees" in line
    assert line.endswith("the sensor's is used")


def test_what_is_not_there_cannot_be_used():
    with pytest.raises(InputError, match="--flow rpc, but the image has no RPCs"):
        choose([tile(0, 1.0, 90, 9)], None, False, "rpc", TILING, False)
    with pytest.raises(InputError, match="give no direction"):
        choose([TileFlow(0, 1.0, (math.nan, math.nan), 5)], None, False, "auto", TILING, False)


def test_local_flow_is_a_vector_for_each_tile_that_shows_one():
    tiles = [tile(n, 1.0 + n, 90, 9 if n else 0) for n in range(len(TILING))]
    field = choose(tiles, None, False, "model", TILING, True)[0].field
    assert field.px_per_m.shape == (3, 3, 2)
    np.testing.assert_allclose(field.at(field.columns[2], field.rows[1]), [6.0, 0.0], atol=1e-9)
    mean = combine(tiles)[0].scale_px_per_m
    np.testing.assert_allclose(field.at(field.columns[0], field.rows[0]), [mean, 0.0], atol=1e-9)
