"""Heights as from a lidar: what is wrong with them, that it is said, and that all else is exact."""

import dataclasses
import json

import numpy as np
import pytest

from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.layouts.splits import read_split
from geopose.sample_city.__main__ import main
from geopose.sample_city.view.lidar import drawn_survey, measure, two_dates
from geopose.sample_city.view.raster import View, rasterize
from geopose.sample_city.view.render import render_scene
from geopose.sample_city.world.mesh import MeshBuilder, flat_building, prism
from geopose.sample_city.writer import write_dataset

GRAY = (128.0, 128.0, 128.0)
VIEW = View((0.3, -0.5), 0.5, (0, 0), (160, 200))
NONE = np.zeros(VIEW.shape, bool)


def survey(**changes):
    clean = {"noise_m": 0.0, "slow_m": 0.0, "crown_m": 0.0, "through": 0.0, "ragged_px": 0.0}
    clean |= {"holes": 0.0, "shadows": False, "changed": ""}
    rng = np.random.default_rng(1)
    return dataclasses.replace(drawn_survey("SYA", 0, 0), **(clean | {"rng": rng} | changes))


def block():
    z_m = np.zeros(VIEW.shape, np.float32)
    z_m[40:90, 60:130] = 12.0
    return z_m


def test_without_errors_heights_are_exact():
    measured, report = measure(survey(), block(), VIEW, NONE, NONE, NONE)
    np.testing.assert_array_equal(measured, block())
    assert report["unknown"] == {"water": 0.0, "not seen by the lidar": 0.0, "holes": 0.0}


def test_noise_is_as_large_as_reported_and_heights_stay_above_ground():
    measured, report = measure(survey(noise_m=0.15), block(), VIEW, NONE, NONE, NONE)
    roof = (measured - block())[45:85, 65:125]
    assert roof.std() == pytest.approx(0.15, rel=0.1)
    assert abs(roof.mean()) < 0.02
    assert report["noise_m"] == 0.15
    assert measured.min() >= 0.0


def test_edges_are_ragged_within_a_pixel_and_nowhere_else():
    measured, _ = measure(survey(ragged_px=0.6), block(), VIEW, NONE, NONE, NONE)
    differs = measured != block()
    edge = np.zeros_like(differs)
    edge[39:91, 59:131] = True
    edge[41:89, 61:129] = False
    assert 0.1 < differs[edge].mean() < 0.6
    assert not differs[~edge].any()
    assert set(np.unique(measured)) == {0.0, 12.0}


def test_gaps_are_where_water_lies_where_the_lidar_did_not_look_and_in_holes():
    water, hidden = NONE.copy(), NONE.copy()
    water[100:, :80] = True
    hidden[:20] = True
    measured, report = measure(survey(holes=0.004), block(), VIEW, NONE, water, hidden)
    unknown = np.isnan(measured)
    assert unknown[:20].all()
    assert unknown[100:, :80].mean() > 0.9
    holes = unknown[20:100]
    assert 0.001 < holes.mean() < 0.012
    assert report["unknown"]["not seen by the lidar"] == pytest.approx(hidden.mean(), abs=1e-4)


def test_a_building_of_one_date_is_taken_out_with_what_stands_on_it():
    builder = MeshBuilder()
    for left in (20.0, 60.0):
        ring = [(left, 30.0), (left + 20, 30.0), (left + 20, 50.0), (left, 50.0)]
        flat_building(builder, ring, 0.0, 15.0, GRAY, GRAY, 0, parapet_m=1.0)
        box = [(left + 8, 38.0), (left + 11, 38.0), (left + 11, 41.0), (left + 8, 41.0)]
        prism(builder, box, 14.0, 17.0, GRAY)
    mesh = builder.build()
    for changed, said in (("built", "image only"), ("demolished", "heights only")):
        worlds = two_dates(survey(changed=changed), mesh, (100.0, 80.0))
        less, full = worlds.heights, worlds.image
        if changed == "demolished":
            less, full = full, less
        assert full is mesh
        assert less.face_count == mesh.face_count // 2
        assert worlds.change["in"] == said
        x, y = worlds.change["ground_m"]
        assert (x in (30.0, 70.0), y) == (True, 40.0)
        z_m = rasterize(less, View((0.0, 0.0), 0.5, (0, 0), (160, 200))).z_m
        other = 100.0 - x
        assert z_m[80, round(other / 0.5)] > 13.0
        assert not z_m[50:110, round(x / 0.5) - 25 : round(x / 0.5) + 25].any()


def test_images_and_exact_heights_are_those_without_a_lidar():
    for index in range(40):
        if drawn_survey("SYB", index, 0).changed == "":
            break
    plain, lidar = (render_scene("SYB", index, 128, 0, "real", way) for way in (False, True))
    np.testing.assert_array_equal(plain.rgb, lidar.rgb)
    np.testing.assert_array_equal(plain.agl_m, lidar.agl_m)
    assert plain.measured_m is None
    known = np.isfinite(lidar.measured_m)
    assert 0.5 < known.mean() <= 1.0
    error = np.abs(lidar.measured_m - lidar.agl_m)[known]
    assert np.median(error) < 0.4
    assert (error > 0).mean() > 0.4
    assert lidar.survey["buildings_of_one_date"] == []


def test_a_data_set_says_which_heights_are_not_exact(tmp_path):
    arguments = {"train": 6, "test": 1, "size": 64, "seed": 2, "cities": ("SYA", "SYC")}
    arguments |= {"preset": "real"}
    write_dataset(tmp_path / "a", lidar=0.5, **arguments)
    write_dataset(tmp_path / "exact", **arguments)
    report = json.loads((tmp_path / "a" / "lidar.json").read_text())
    assert "NOT exact" in report["about"]
    assert json.loads((tmp_path / "a" / "sample_city.json").read_text())["lidar"] == 0.5
    assert "lidar" not in json.loads((tmp_path / "exact" / "sample_city.json").read_text())
    assert not (tmp_path / "exact" / "lidar.json").exists()
    names = {record.image_id for record in read_split(tmp_path / "a", "train")}
    assert set(report["scenes"]) < names
    assert 1 < len(report["scenes"]) < 12
    for name in names:
        of_both = [tmp_path / root / "train" / f"{name}_AGL.tif" for root in ("a", "exact")]
        same = of_both[0].read_bytes() == of_both[1].read_bytes()
        assert same == (name not in report["scenes"])
    truth = sorted((tmp_path / "a" / "test_truth").iterdir())
    assert len(truth) == 4
    for path in truth:
        assert path.read_bytes() == (tmp_path / "exact" / "test_truth" / path.name).read_bytes()


def test_a_rerun_completes_the_same_heights(tmp_path):
    arguments = {"train": 2, "test": 0, "size": 64, "cities": ("SYA",), "lidar": 1.0}
    write_dataset(tmp_path / "a", **arguments)
    path = tmp_path / "a" / "train" / "SYA_000001_AGL.tif"
    before, report = path.read_bytes(), (tmp_path / "a" / "lidar.json").read_bytes()
    (tmp_path / "a" / "train" / "SYA_000001_LIDAR.json").unlink()
    assert write_dataset(tmp_path / "a", **arguments) == 1
    assert path.read_bytes() == before
    assert (tmp_path / "a" / "lidar.json").read_bytes() == report
    assert np.isfinite(read_agl_m(path)).any()


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan"])
def test_a_share_out_of_range_is_one_line(tmp_path, capsys, share):
    argv = ["--out", str(tmp_path / "out"), "--lidar", share]
    assert run_command(main, argv) == 2
    assert "lidar" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
