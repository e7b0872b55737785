"""The sensor of the preset `real`: bands that miss each other, a vendor's balance, file sizes."""

import dataclasses

import numpy as np
import pytest

from geopose.sample_city.view.sensor import expose
from geopose.sample_city.view.shade import brighter_walls
from geopose.sample_city.world.cities import scene_parameters
from geopose.sample_city.world.look import Look, drawn_look
from geopose.sample_city.writer import write_dataset

PLAIN = Look(colour_blur_px=0.5, saturation=1.0, noise=(0.0, 0.0))


def shown(linear, **look):
    scene = scene_parameters("SYA", 0, 0)
    style = dataclasses.replace(scene.style, tint=(1.0, 1.0, 1.0))
    scene = dataclasses.replace(scene, style=style, look=dataclasses.replace(PLAIN, **look))
    return expose(scene, np.asarray(linear, np.float32)).astype(int)


def test_bands_that_miss_each_other_colour_the_edges_and_nothing_else():
    linear = np.full((40, 60, 3), 0.1, np.float32)
    linear[:, 30:] = 0.6
    aligned, shifted = (shown(linear, fringe_px=(by, 0.0)) for by in (0.0, 0.8))
    red_minus_blue = (shifted - aligned)[..., 0] - (shifted - aligned)[..., 2]
    assert np.abs(red_minus_blue[:, 25:36]).max() > 15
    assert np.abs(red_minus_blue[:, :24]).max() <= 1
    assert np.abs(red_minus_blue[:, 38:]).max() <= 1


def test_a_balanced_stretch_takes_a_cast_away():
    rng = np.random.default_rng(0)
    grey = rng.uniform(0.02, 0.6, (60, 80, 1)).astype(np.float32)
    linear = grey * np.array([1.0, 0.9, 0.7], np.float32)
    stretch = (0.002, 0.01, 2.0, 0.0, (1.0, 1.0, 1.0))
    apart = []
    for balance in (0.0, 1.0):
        rgb = shown(linear, stretch=stretch, balance=balance)
        apart.append(float(np.median(rgb[..., 0] - rgb[..., 2])))
    assert apart[0] > 20
    assert abs(apart[1]) < 8


def test_brighter_walls_keep_their_colour_and_reflect_no_more_than_they_get():
    walls = np.array([[0.1, 0.2, 0.3], [0.4, 0.8, 0.2], [0.95, 0.9, 0.9]], np.float32)
    brighter = brighter_walls(walls, dataclasses.replace(PLAIN, walls=2.0))
    np.testing.assert_allclose(brighter[0], [0.2, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(brighter[1], [0.45, 0.9, 0.225], rtol=1e-6)
    np.testing.assert_array_equal(brighter[2], walls[2])  # whiter than any: left as it is
    np.testing.assert_array_equal(brighter_walls(walls, PLAIN), walls)


def test_compression_and_fringes_vary_from_scene_to_scene():
    looks = [drawn_look(np.random.default_rng(i)) for i in range(60)]
    ratios = [look.j2k_ratio for look in looks]
    assert min(ratios) < 6.0
    assert max(ratios) > 18.0
    assert np.hypot(*np.array([look.fringe_px for look in looks]).T).max() < 2.0
    assert {Look().j2k_ratio} == {8.0}


@pytest.mark.parametrize("preset", ["easy", "real"])
def test_files_are_as_small_as_their_scene_says(tmp_path, preset):
    write_dataset(tmp_path, 3, 0, 160, cities=("SYA",), preset=preset)
    for index in range(3):
        size = (tmp_path / "train" / f"SYA_{index:06d}_RGB.j2k").stat().st_size
        ratio = scene_parameters("SYA", index, 0, preset).look.j2k_ratio
        assert 160 * 160 * 3 / size == pytest.approx(ratio, rel=0.12)
