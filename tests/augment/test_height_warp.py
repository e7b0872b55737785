"""Taller and lower scenes: warped ones against ones rendered with other heights."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from geopose.augment.build import build_augmentation
from geopose.augment.height_warp import HeightWarpRange, margins, warp_height
from geopose.augment.spatial import Sample
from geopose.errors import InputError
from tests.box_scenes import Box, render_boxes, town
from tests.tiny_data import smooth_rgb

SHAPE = (260, 270)
ANGLES = [0.0, 0.4, math.pi / 4, math.pi / 2, 2.2, math.pi, 3.9, 1.5 * math.pi, 5.6]
FACTORS = [0.4, 0.6, 0.9, 1.1, 1.6, 2.5]


def _stretched(boxes: list[Box], factor: float) -> list[Box]:
    return [
        Box(b.left, b.top, b.right, b.bottom, b.height_m * factor, b.rise_m * factor) for b in boxes
    ]


def _picture(
    agl_m: NDArray[np.float32], scale: float, angle: float, factor: float
) -> NDArray[np.uint8]:
    """Colours of the places seen: by ground position, and along a wall by share of its height."""
    y, x = np.mgrid[: agl_m.shape[0], : agl_m.shape[1]].astype(float)
    x, y = x + agl_m * scale * math.sin(angle), y + agl_m * scale * math.cos(angle)
    z = agl_m / factor
    waves = (x / 6 + z / 9, y / 7 - z / 8, (x - y) / 9 + z / 12)
    return np.rint(127 + 100 * np.stack([np.sin(wave) for wave in waves], axis=-1)).astype(np.uint8)


def _scene(
    boxes: list[Box], factor: float, scale: float, angle: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    agl_m = render_boxes(_stretched(boxes, factor), SHAPE, scale, angle).agl_m
    return _picture(agl_m, scale, angle, factor), agl_m


def _inner(agl_m: NDArray[np.float32], scale: float) -> NDArray[np.bool_]:
    """Pixels that can be compared: into which nothing comes from outside."""
    reach = math.ceil(45 * scale)
    inner = np.zeros(agl_m.shape, bool)
    inner[reach:-reach, reach:-reach] = True
    return inner


def _edges(agl_m: NDArray[np.float32], scale: float) -> NDArray[np.bool_]:
    """Pixels whose neighbours show something else, which no rounding decides alike."""
    spread = ndimage.maximum_filter(agl_m, 3) - ndimage.minimum_filter(agl_m, 3)
    return spread > 2.9 / scale


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("factor", FACTORS)
def test_a_town_is_what_it_would_be_with_other_heights(factor: float, angle: float) -> None:
    scale, boxes = 0.8, town(SHAPE, 2, 24.0)
    before, wanted = (_scene(boxes, f, scale, angle) for f in (1.0, factor))
    image, agl_m = warp_height(*before, scale, angle, factor)
    inner = _inner(agl_m, scale)
    known = inner & ~np.isnan(agl_m)
    error = np.abs(agl_m - wanted[1])
    same = error < 0.25 / scale  # what a wall rises in a quarter of a pixel
    assert same[known].mean() > 0.97
    assert same[known & ~_edges(wanted[1], scale)].mean() > 0.98
    assert (error < 1e-3)[known].mean() > 0.89
    close = np.abs(image.astype(int) - wanted[0]).max(axis=2) <= 25
    assert close[known].mean() > 0.985
    hole = inner & np.isnan(agl_m)
    if factor > 1:
        assert not hole.any()
        return
    was_hidden = (before[1] > 0) & (wanted[1] == 0)
    assert (~np.isnan(agl_m[ndimage.binary_erosion(was_hidden) & inner])).sum() <= 2
    assert hole[ndimage.binary_erosion(~was_hidden)].mean() < 0.005


def test_roofs_are_exactly_so_many_times_as_tall() -> None:
    boxes = [Box(120.4, 110.2, 160.7, 170.1, 30.0), Box(60.2, 190.6, 100.3, 220.4, 12.0)]
    _, before = _scene(boxes, 1.0, 0.7, 0.8)
    _, agl_m = warp_height(smooth_rgb(*SHAPE), before, 0.7, 0.8, 1.5)
    _, wanted = _scene(boxes, 1.5, 0.7, 0.8)
    for height_m in (45.0, 18.0):
        roof = ndimage.binary_erosion(wanted == np.float32(height_m))
        assert roof.sum() > 500
        assert (agl_m[roof] == np.float32(height_m)).all()


def test_factor_one_and_no_lean_move_nothing() -> None:
    image, agl_m = smooth_rgb(*SHAPE), render_boxes(town(SHAPE, 1), SHAPE, 1.0, 0.3).agl_m
    agl_m[20:40, 50:90] = np.nan
    same_image, same_agl_m = warp_height(image, agl_m, 1.0, 0.3, 1.0)
    np.testing.assert_array_equal(same_image, image)
    np.testing.assert_array_equal(same_agl_m, agl_m)
    from_above, taller_m = warp_height(image, agl_m, 0.0, 0.3, 1.5)
    np.testing.assert_array_equal(from_above, image)
    np.testing.assert_array_equal(taller_m, agl_m * np.float32(1.5))
    nothing = np.full(SHAPE, np.nan, np.float32)
    unknown_image, unknown = warp_height(image, nothing, 1.0, 0.3, 1.5)
    assert np.isnan(unknown).all()
    np.testing.assert_array_equal(unknown_image, image)


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_flat_ground_and_unknown_heights_stay(factor: float) -> None:
    image = smooth_rgb(*SHAPE)
    agl_m = np.zeros(SHAPE, np.float32)
    agl_m[100:140, 100:140] = 20.0
    agl_m[30:60, 30:60] = np.nan
    agl_m[200:220, 40:60] = -3.0
    moved, warped = warp_height(image, agl_m, 0.5, 0.0, factor)
    still = np.ones(SHAPE, bool)
    still[85:145, 95:145] = False
    np.testing.assert_array_equal(moved[still], image[still])
    assert np.isnan(warped[30:60, 30:60]).all()
    assert (warped[200:220, 40:60] == np.float32(-3) * np.float32(factor)).all()
    assert (warped[still & ~np.isnan(agl_m) & (agl_m == 0)] == 0).all()


def test_what_a_lower_roof_no_longer_hides_looks_like_the_ground_behind() -> None:
    image = np.full((*SHAPE, 3), 90, np.uint8)
    scene = render_boxes([Box(100.2, 100.3, 150.2, 150.3, 40.0)], SHAPE, 1.0, 0.5).agl_m
    image[scene > 0] = 255
    moved, agl_m = warp_height(image, scene, 1.0, 0.5, 0.5)
    hole = ndimage.binary_erosion(np.isnan(agl_m), iterations=2)
    assert hole.sum() > 500
    assert (moved[hole] == 90).all()


def test_the_taller_one_covers_the_lower_one() -> None:
    boxes = [Box(100.3, 100.2, 130.3, 120.2, 8.0), Box(100.3, 135.2, 130.3, 160.2, 40.0)]
    _, before = _scene(boxes, 1.0, 0.5, 0.0)
    _, after = warp_height(smooth_rgb(*SHAPE), before, 0.5, 0.0, 2.0)
    assert (before[105:112, 105:125] == 8.0).all()
    assert (after[105:112, 105:125] == 80.0).all()


@pytest.mark.parametrize("factor", [0.6, 1.6])
@pytest.mark.parametrize("angle", [0.2, 1.9, 3.5, 5.2])
def test_a_crop_is_that_of_the_whole_image(factor: float, angle: float) -> None:
    """Also what leans into it from outside."""
    scene = render_boxes(town((300, 320), 4, 40.0), (300, 320), 0.9, angle).agl_m
    image = smooth_rgb(300, 320)
    whole_image, whole = warp_height(image, scene, 0.9, angle, factor)
    (above, below), (left, right) = margins(0.9, angle, factor)
    assert max(above, below, left, right) < 70
    rows, columns = slice(100, 200), slice(110, 210)
    part = slice(100 - above, 200 + below), slice(110 - left, 210 + right)
    part_image, crop = warp_height(image[part], scene[part], 0.9, angle, factor)
    inner = slice(above, above + 100), slice(left, left + 100)
    known = ~np.isnan(crop[inner])
    assert known.mean() > 0.8
    np.testing.assert_array_equal(crop[inner], whole[rows, columns])
    np.testing.assert_array_equal(part_image[inner][known], whole_image[rows, columns][known])


WARP = {"probability": 1.0, "factor": [1.5, 1.5]}


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("level", ["d4_only", "light"])
def test_a_sample_has_the_labels_of_its_pixels(level: str, downsample: int) -> None:
    boxes = [Box(90.0, 90.0, 140.0, 150.0, 20.0)]
    agl_m = render_boxes(boxes, (300, 300), 1.0, 0.7).agl_m
    image = np.full((300, 300, 3), 80, np.uint8)
    image[agl_m == 20.0] = 200
    for seed in range(6):
        sample = _drawn(image, agl_m, seed, level, downsample, WARP)
        plain = _drawn(image, agl_m, seed, level, downsample, None)
        assert sample[2:] == plain[2:]  # gsd, scale and angle
        before, after = (
            np.array(ndimage.center_of_mass(heights_m == np.nanmax(heights_m)))[::-1]
            for heights_m in (plain.agl_m, sample.agl_m)
        )
        wanted = -10.0 * sample.scale_px_per_m
        direction = np.array([math.sin(sample.angle_rad), math.cos(sample.angle_rad)])
        assert after - before == pytest.approx(wanted * direction, abs=0.7)
        assert np.nanmax(sample.agl_m) == 30.0


def _drawn(
    image: NDArray[np.uint8], agl_m: NDArray[np.float32], seed: int, level: str, downsample: int,
    warp: dict[str, object] | None,
) -> Sample:  # fmt: skip
    augmentation = build_augmentation(level, None, downsample, warp)
    augmentation.set_seed(seed)
    return augmentation(image, agl_m, 0.5, 1.0, 0.7)


def test_samples_follow_from_the_seed_and_the_others_stay_as_they_were() -> None:
    agl_m = render_boxes(town(SHAPE, 3), SHAPE, 1.0, 0.7).agl_m
    image = smooth_rgb(*SHAPE)
    warp = {"probability": 0.5, "factor": [0.6, 1.6]}
    changed = 0
    for seed in range(12):
        first, second, plain = (
            _drawn(image, agl_m, seed, "light", 1, chosen) for chosen in (warp, warp, None)
        )
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
        same = np.array_equal(first.image, plain.image)
        assert same == np.array_equal(first.agl_m, plain.agl_m, equal_nan=True)
        changed += not same
    assert 2 <= changed <= 10


def test_factors_are_drawn_evenly_by_their_logarithm() -> None:
    drawn = HeightWarpRange.of({"probability": 0.5, "factor": [0.5, 2]})
    rng = np.random.default_rng(0)
    factors = np.array([drawn.draw(rng) for _ in range(2000)])
    assert (factors == 1.0).mean() == pytest.approx(0.5, abs=0.04)
    others = factors[factors != 1.0]
    assert 0.5 <= others.min() < 0.52
    assert 1.95 < others.max() <= 2.0
    assert (others < 1).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"probability": 0.5}, "probability and factor"),
        ({"probability": 0.5, "factor": [0.6, 1.6], "seed": 1}, "seed"),
        ({"probability": 1.5, "factor": [0.6, 1.6]}, "1.5"),
        ({"probability": "often", "factor": [0.6, 1.6]}, "often"),
        ({"probability": 0.5, "factor": [1.6, 0.6]}, "least first"),
        ({"probability": 0.5, "factor": 1.6}, "two numbers"),
        ({"probability": 0.5, "factor": [0, 1.6]}, "from 0.25"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        build_augmentation("none", 32, 1, given)
