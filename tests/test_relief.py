"""Terrain under the city: no height and no flow changes, shadows bend, slopes are shaded."""

import dataclasses
import math

import numpy as np
import pytest

from geopose.sample_city.view import render
from geopose.sample_city.view.raster import View, rasterize
from geopose.sample_city.view.shade import ground_light, sun_mask
from geopose.sample_city.world.cities import CITIES, scene_parameters
from geopose.sample_city.world.mesh import MeshBuilder, flat_building
from geopose.sample_city.world.relief import FLAT, Relief, drawn_relief

GRAY = (128.0, 128.0, 128.0)
BOX = [(25.0, 25.0), (35.0, 25.0), (35.0, 35.0), (25.0, 35.0)]


def scene_on(relief, sun_deg=45.0):
    return dataclasses.replace(
        scene_parameters("SYA", 0, 0),
        gsd_m=0.5,
        sun_elevation_rad=math.radians(sun_deg),
        sun_azimuth_rad=math.radians(90.0),  # towards the right edge
        relief=relief,
    )


@pytest.mark.parametrize(("rise", "metres"), [(0.0, 10.0), (-0.1, 10 / 1.1), (0.1, 10 / 0.9)])
@pytest.mark.parametrize("k", [(0.0, 0.0), (0.5, 0.7)])
def test_shadows_are_short_uphill_and_long_downhill(rise, metres, k):
    """The ground rises to the right by `rise`; a box of 10 m throws its shadow to the left."""
    builder = MeshBuilder()
    flat_building(builder, BOX, 0.0, 10.0, GRAY, GRAY, 0)
    mesh, view = builder.build(), View(k, 0.5, (0, 0), (120, 120))
    lit = sun_mask(scene_on(Relief((rise, 0.0))), mesh, view, rasterize(mesh, view))
    shaded = np.flatnonzero(lit[68, :] == 0)  # 34 m down, below what leans
    assert (50 - shaded.min()) * 0.5 == pytest.approx(metres, abs=0.9)
    assert lit[68, : 50 - round(metres / 0.5) - 2].all()
    roof = rasterize(mesh, view).z_m == 10.0
    assert lit[roof].all()


def test_a_hill_and_a_plane_agree_with_their_slopes():
    relief = Relief((0.03, -0.02), ((60.0, 80.0, 200.0, 25.0), (300.0, 0.0, 150.0, -9.0)))
    x, y = np.meshgrid(np.arange(0, 200, 1.0), np.arange(0, 160, 1.0))
    height = relief.height_m(x, y).astype(float)
    along_x, along_y = relief.slopes(x, y)
    rows, columns = np.gradient(height)
    np.testing.assert_allclose(along_x[2:-2, 2:-2], columns[2:-2, 2:-2], atol=2e-3)
    np.testing.assert_allclose(along_y[2:-2, 2:-2], rows[2:-2, 2:-2], atol=2e-3)
    on_grid = relief.height_m(x[0], y[:, :1])  # from vectors
    np.testing.assert_allclose(on_grid, height, atol=1e-3)


def test_ground_that_faces_the_sun_is_brighter():
    view = View((0.0, 0.0), 0.5, (0, 0), (40, 40))
    level, toward, away = (
        ground_light(scene_on(Relief((rise, 0.0)), 30.0), view).mean() for rise in (0.0, -0.1, 0.1)
    )
    assert level == 1.0
    assert toward == pytest.approx(1.168, abs=0.01)  # (1 + 0.1 / tan 30) / sqrt(1.01)
    assert away == pytest.approx(0.823, abs=0.01)


def test_relief_moves_nothing(monkeypatch):
    drawn = scene_parameters("SYB", 3, 0, "real")
    relief = Relief((0.05, 0.03), ((40.0, 40.0, 200.0, 30.0),))
    scenes = []
    for terrain in (FLAT, relief):
        parameters = dataclasses.replace(drawn, relief=terrain, rng=np.random.default_rng(5))
        monkeypatch.setattr(render, "scene_parameters", lambda *_, p=parameters: p)
        scenes.append(render.render_scene("SYB", 3, 160, 0, "real"))
    flat, hilly = scenes
    np.testing.assert_array_equal(flat.agl_m, hilly.agl_m)
    np.testing.assert_array_equal(flat.nodata, hilly.nodata)
    assert (flat.scale_px_per_m, flat.angle_rad) == (hilly.scale_px_per_m, hilly.angle_rad)
    assert (flat.rgb != hilly.rgb).any()


def test_real_scenes_are_gently_hilly_and_easy_ones_flat():
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 700, 40), np.linspace(0, 700, 40))
    ranges, steepest = [], []
    for _ in range(200):
        relief = drawn_relief(rng)
        height = relief.height_m(x, y)
        ranges.append(float(height.max() - height.min()))
        steepest.append(float(np.hypot(*relief.slopes(x, y)).max()))
    ranges = np.array(ranges)
    assert 0.2 < (ranges == 0).mean() < 0.5
    assert 12.0 < np.median(ranges[ranges > 0]) < 70.0
    assert max(steepest) < 0.3  # no hill throws a shadow: the lowest sun is at 24 degrees
    assert all(scene_parameters(city, i, 0).relief.flat for city in CITIES for i in range(5))
    assert any(not scene_parameters("SYA", i, 0, "real").relief.flat for i in range(5))
