"""Real height fields as geometry: what a camera and the sun see of columns, files, refusals."""

import math

import numpy as np
import pytest
import tifffile

from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError
from geopose.geometry import angle_to_vector
from geopose.sample_city.__main__ import main
from geopose.sample_city.view.district_view import render_district
from geopose.sample_city.view.march import seen_heights, shadow_heights
from geopose.sample_city.world.district import Cover, read_district
from geopose.sample_city.writer import write_dataset

GROUND_M = -23.0
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    """Ground at -23 m, a hall of 12 m with a tower of 30 m on it, a crown, a car, a hole."""
    dsm = np.full((200, 240), GROUND_M, np.float32)
    dsm[40:100, 50:130] += 12.0
    dsm[60:80, 70:90] = GROUND_M + 30.0
    y, x = np.mgrid[:200, :240]
    dome = 9.0 - 0.05 * ((y - 150) ** 2 + (x - 60) ** 2)
    crown = np.maximum(dome, 0) * RNG.uniform(0.4, 1.0, dome.shape)
    dsm += crown.astype(np.float32)
    dsm[150:154, 150:159] += 1.5
    dsm[120:200, 160:240] = np.nan
    path = tmp_path_factory.mktemp("dsm") / "Some_Place-DSM.tif"
    scale = (33550, "d", 3, (0.5, 0.5, 0.0))
    tifffile.imwrite(path, dsm, extratags=[(*scale, True)])
    return path


def march(columns, k, origin, shape, step):
    """The tallest height at which a ray is inside a column, tried one by one."""
    seen = np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            for z in np.arange(step, columns.max() + step, step):
                x = math.floor(column + origin[0] + z * k[0] + 0.5)
                y = math.floor(row + origin[1] + z * k[1] + 0.5)
                if columns[y, x] >= z:
                    seen[row, column] = z
    return seen


@pytest.mark.parametrize("angle_deg", [10.0, 145.0, 290.0])
def test_columns_equal_a_brute_force_march(angle_deg):
    columns = np.zeros((70, 70), np.float32)
    columns[30:40, 28:44] = 7.3
    columns[36:39, 30:33] = 11.9
    k = tuple(1.1 * angle_to_vector(math.radians(angle_deg)))
    seen = seen_heights(columns, k, (20, 20), (30, 30))
    wanted = march(columns, k, (20, 20), (30, 30), 0.02)
    difference = np.abs(seen - wanted)
    assert (difference < 0.021).mean() > 0.99  # a ray through a column's corner may differ
    on_top = np.isclose(seen, 7.3, atol=1e-6) | np.isclose(seen, 11.9, atol=1e-6)
    assert on_top.sum() > 60  # tops are exact, not within a step


def test_a_shadow_ends_where_the_sun_comes_over_the_roof():
    columns = np.zeros((80, 80), np.float32)
    columns[30:50, 30:50] = 10.0
    shade = shadow_heights(columns, (2.0, 0.0), 1.0)  # the sun is to the right, 2 px a metre
    row = shade[40]
    assert row[29] == pytest.approx(10.0, abs=0.6)
    assert row[20] == pytest.approx(5.0, abs=0.6)
    assert row[5] <= 0.0
    assert row[60] <= 0.0
    assert (shade[10] <= 0.0).all()


def test_a_surface_model_is_taken_apart(surface):
    district = read_district(surface)
    assert district.name == "SomePlaceDSM"
    step = round(0.5 / district.cell_m)
    assert district.agl_m.shape == (200 * step, 240 * step)

    def at(row, column):
        place = row * step, column * step
        return district.agl_m[place], Cover(district.cover[place]), district.roofs[place]

    hall, tower, tree = at(50, 110), at(70, 80), at(150, 60)
    assert hall[:2] == (pytest.approx(12.0, abs=0.01), Cover.ROOF)
    assert tower[:2] == (pytest.approx(30.0, abs=0.01), Cover.ROOF)
    assert hall[2] != tower[2]
    assert tree[1] == Cover.TREE
    assert at(152, 155)[1] == Cover.CAR
    assert at(20, 20)[:2] == (pytest.approx(0.0, abs=0.01), Cover.GROUND)
    assert district.unknown[185 * step, 210 * step]
    assert not district.unknown[20 * step, 20 * step]


def test_scenes_of_a_district_repeat_and_withhold_unknown_heights(surface):
    district = read_district(surface)
    scenes = [render_district(district, index, (90, 110), 3) for index in (0, 1, 0)]
    np.testing.assert_array_equal(scenes[0].rgb, scenes[2].rgb)
    np.testing.assert_array_equal(scenes[0].agl_m, scenes[2].agl_m)
    assert scenes[0].angle_rad != scenes[1].angle_rad
    many = [render_district(district, index, 64, 0) for index in range(12)]
    assert any(scene.nodata.any() for scene in many)
    assert any(scene.agl_m.max() > 8.0 for scene in many)
    assert all((scene.agl_m[scene.nodata] == 0).all() for scene in many)


def test_plant_on_the_tallest_roof_does_not_lean_beyond_the_ground_that_was_cut(tmp_path):
    dsm = np.full((120, 120), GROUND_M, np.float32)
    dsm[10:110, 10:110] += 12.0
    scale = (33550, "d", 3, (0.5, 0.5, 0.0))
    tifffile.imwrite(tmp_path / "Roof.tif", dsm, extratags=[(*scale, True)])
    district = read_district(tmp_path / "Roof.tif")
    for index in (27, 41):  # a high sun and a strong lean: the margin is that of the roof's lean
        scene = render_district(district, index, (64, 64), seed=0)
        assert np.isfinite(scene.agl_m).all()
        assert scene.agl_m.max() > 8.0


def test_a_data_set_of_surfaces_completes_and_is_not_mixed(surface, tmp_path):
    arguments = {"train": 1, "test": 1, "size": 64, "seed": 3, "cities": ("SYA",)}
    arguments |= {"preset": "real", "dsm": [surface]}
    assert write_dataset(tmp_path / "a", workers=1, **arguments) == 4
    record = read_split(tmp_path / "a", "train")[1]
    assert record.city == "SomePlaceDSM"
    scene = render_district(read_district(surface), 0, 64, 3)
    assert record.gsd_m == scene.gsd_m
    agl = read_agl_m(tmp_path / "a" / "train" / f"{record.image_id}_AGL.tif")
    np.testing.assert_allclose(agl, np.where(scene.nodata, np.nan, scene.agl_m), atol=0.0051)
    (tmp_path / "a" / "test" / "SomePlaceDSM_500000_RGB.j2k").unlink()
    assert write_dataset(tmp_path / "a", workers=1, **arguments) == 1
    for change in ({"dsm": []}, {"preset": "easy"}, {"dsm_cell_m": 0.6}):
        with pytest.raises(InputError, match="other arguments"):
            write_dataset(tmp_path / "a", workers=1, **(arguments | change))


def test_unusable_surfaces_are_one_line_and_leave_nothing(surface, tmp_path, capsys):
    out = tmp_path / "out"
    text, flat, void = (tmp_path / f"{name}.tif" for name in ("text", "flat", "void"))
    text.write_text("no image")
    tifffile.imwrite(flat, np.zeros((40, 40), np.float32))
    tifffile.imwrite(void, np.full((40, 40), np.nan, np.float32))
    sya = tmp_path / "SYA.tif"
    sya.write_bytes(surface.read_bytes())
    cases = (
        ([str(text)], "no TIFF"),
        ([str(flat)], "--dsm-cell"),
        ([str(void), "--dsm-cell", "0.5"], "holds no height"),
        ([str(tmp_path / "none.tif")], "none.tif"),
        ([str(sya)], "rename"),
        ([str(surface), str(surface)], "rename"),
    )
    for extra, said in cases:
        argv = ["--out", str(out), "--train", "1", "--test", "0", "--size", "64", "--dsm", *extra]
        assert run_command(main, argv) == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith("error: ")
        assert "\n" not in message
        assert said in message
        assert not out.exists()


def test_heights_of_a_district_as_from_a_lidar_leave_the_image_alone(surface):
    district = read_district(surface)
    plain, lidar = (render_district(district, 2, 96, 0, way) for way in (False, True))
    np.testing.assert_array_equal(plain.rgb, lidar.rgb)
    np.testing.assert_array_equal(plain.agl_m, lidar.agl_m)
    assert plain.measured_m is None
    assert (np.abs(lidar.measured_m - lidar.agl_m) > 0.005).mean() > 0.3
    assert lidar.survey["buildings_of_one_date"] == []
