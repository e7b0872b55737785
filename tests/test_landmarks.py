"""Rarer buildings and blocks of the preset `real`: their heights, and where they stand."""

import numpy as np
import pytest

from geopose.sample_city.view.raster import View, rasterize
from geopose.sample_city.world.cities import CITIES, scene_parameters
from geopose.sample_city.world.land_use import BLOCKS
from geopose.sample_city.world.landmarks import (
    bridge,
    crane,
    gantry,
    parking_deck,
    podium,
    row_of_houses,
    shell,
    special_block,
    stadium,
)
from geopose.sample_city.world.rarer_blocks import RARER_BLOCKS
from geopose.sample_city.world.site import Site, World

BOUNDS = (-500.0, -500.0, 500.0, 500.0)


def site_of(seed=0, rect=(0.0, 0.0, 100.0, 80.0)):
    style = scene_parameters("SYB", 0, 0, "real").style
    world = World(style, np.random.default_rng(seed), BOUNDS)
    return Site(world, (10.0, 10.0), 0.0, rect)


def seen(site, k=(0.0, 0.0), shape=(240, 260), gsd_m=0.5):
    return rasterize(site.world.mesh.build(), View(k, gsd_m, (0, 0), shape)).z_m


def at(z_m, s, t):
    """Height over a local point; the site's axes are the image's, 10 m from its corner."""
    return z_m[round((t + 10.0) / 0.5), round((s + 10.0) / 0.5)]


def test_a_bridge_has_the_height_of_its_deck_and_slopes_up_to_it():
    site = site_of()
    bridge(site, (0.0, 30.0), (100.0, 30.0), 10.0, 6.0, 20.0)
    z_m = seen(site)
    assert at(z_m, 50.2, 30.5) == pytest.approx(6.0, abs=0.02)
    assert at(z_m, 10.0, 30.5) == pytest.approx(3.0, abs=0.2)
    assert at(z_m, 90.0, 30.5) == pytest.approx(3.0, abs=0.2)
    assert at(z_m, 50.0, 40.0) == 0.0
    aside = seen(site, (0.0, 2.0))  # from the side, 1 m a metre: ground is seen beneath the deck
    column = aside[:, round(60.0 / 0.5)]
    deck = np.flatnonzero(np.isclose(column, 6.0, atol=0.02))  # its cars are in the lanes
    under = column[deck.max() + 1 :]
    assert under.max() <= 7.0
    assert 0.0 in under[: round(6.0 / 0.5)]


def test_a_stadium_is_low_in_the_middle_and_rises_outwards():
    site = site_of(3)
    stadium(site, (0.0, 0.0, 100.0, 80.0))
    z_m = seen(site)
    assert at(z_m, 50.0, 40.0) == 0.0
    profile = np.array([at(z_m, s, 40.0) for s in np.arange(1.5, 30.0, 0.5)])
    assert profile.max() > 6.0
    stands = profile[(profile > 1.6) & (profile < profile.max() - 0.2)]
    assert len(stands) > 5
    assert at(z_m, -3.0, 40.0) == 0.0


def test_a_podium_has_a_court_and_towers():
    site = site_of(1)
    podium(site, (0.0, 0.0, 60.0, 60.0), 80.0)
    z_m = seen(site)
    assert at(z_m, 30.0, 30.0) == 0.0
    assert z_m.max() > 40.0
    base = np.median(z_m[(z_m > 3.0) & (z_m < 25.0)])
    assert 6.0 <= base <= 19.0


def test_a_crane_is_thin_and_as_tall_as_asked():
    site = site_of(2)
    crane(site, 50.0, 40.0, 40.0)
    z_m = seen(site)
    assert z_m.max() == pytest.approx(44.0, abs=0.01)
    assert 30 < (z_m > 38.0).sum() * 0.25 < 160  # square metres: mast, jib and weight


@pytest.mark.parametrize("seed", range(12))
def test_buildings_stay_on_their_land_and_are_whole(seed):
    for number, build in enumerate((special_block, podium)):
        site = site_of(seed + 100 * number)
        build(site, (5.0, 5.0, 55.0, 45.0), 18.0)
        z_m = seen(site)
        built = np.argwhere(z_m > 0.5) * 0.5 - 10.0
        assert (built >= 5.0 - 1.0).all()
        assert (built <= (45.0 + 1.0, 55.0 + 1.0)).all()
        assert (z_m > 3.0).sum() * 0.25 > 250
        assert site.taken


def test_the_other_buildings_stand():
    for seed in range(4):
        for build in (
            lambda site: parking_deck(site, (0.0, 0.0, 60.0, 50.0)),
            lambda site: row_of_houses(site, (0.0, 0.0, 60.0, 10.0), 2),
            lambda site: shell(site, (0.0, 0.0, 40.0, 30.0), 12.0),
            lambda site: gantry(site, 30.0, 10.0, 30.0),
        ):
            site = site_of(seed)
            build(site)
            z_m = seen(site)
            assert 5.0 < z_m.max() < 30.0


@pytest.mark.parametrize("name", list(RARER_BLOCKS))
def test_every_rarer_block_can_be_laid_out_on_land_of_any_size(name):
    for seed, side in enumerate((52.0, 70.0, 110.0, 180.0)):
        for depth in (52.0, 76.0, 130.0):
            rect = (0.0, 0.0, side, depth)
            site = site_of(seed, rect)
            BLOCKS[name](site, rect)
            mesh = site.world.mesh.build()
            assert np.isfinite(mesh.verts).all()
            assert (mesh.verts[..., 2] >= -1e-9).all()
            tallest = mesh.verts[..., 2].max()
            assert tallest <= site.style.tower_m[1] + 8.0, "the world reaches only so far"


def test_real_has_them_and_easy_does_not():
    for city in CITIES:
        easy, real = (scene_parameters(city, 1, 0, p).style for p in ("easy", "real"))
        assert not set(easy.blocks) & set(RARER_BLOCKS)
        assert set(RARER_BLOCKS) <= set(real.blocks)
        assert easy.rarer == easy.viaduct == 0.0
    assert 0.0 < real.viaduct < 0.5
