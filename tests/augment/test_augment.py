"""Augmentation: a scene with known flow is changed, and the displaced points are found again.

The scene has a red spot on a roof and a green one where the roof's ground point lies. Wherever a
change puts the two, the flow said by the changed heights, scale and angle must lead from the red to
the green one, and their distance in metres must stay.
"""

import math
from functools import cache
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest

from geopose.augment import levels
from geopose.augment.build import Augmentation, build_augmentation
from geopose.augment.height import shrink_heights
from geopose.augment.levels import LEVELS, Level
from geopose.augment.spatial import PixelMap, Sample, SpatialRange, apply_map, draw_map
from geopose.errors import InputError
from geopose.geometry import SYMMETRIES, angle_to_vector

GSD_M, ROOF_M, SPOT_PX = 0.4, 80.0, 7.0
LEVEL_RANGES = {name: level.spatial for name, level in LEVELS.items()}


@cache
def _scene(angle_rad: float, size: tuple[int, int] = (700, 760)) -> Sample:
    """Two spots 240 px apart near the centre, a roof disc of one height, a disc without data.

    Its arrays are shared between tests and cannot be written to.
    """
    scale_px_per_m = 3.0
    centre = np.array([size[1] / 2 + 3.3, size[0] / 2 - 2.7])
    half = ROOF_M * scale_px_per_m / 2 * angle_to_vector(np.float64(angle_rad))
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3), np.uint8)
    for channel, spot in ((0, centre - half), (1, centre + half)):
        distance2 = (x - spot[0]) ** 2 + (y - spot[1]) ** 2
        image[..., channel] = np.rint(250 * np.exp(-distance2 / (2 * SPOT_PX**2)))
        if channel == 0:
            agl_m = np.where(distance2 < 30**2, ROOF_M, 2.0 * np.hypot(x % 7, y % 5))
    agl_m[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 25**2] = np.nan
    agl_m = agl_m.astype(np.float32)
    image.flags.writeable = agl_m.flags.writeable = False
    return Sample(image, agl_m, GSD_M, scale_px_per_m, angle_rad)


def _centroid(weights: np.ndarray) -> np.ndarray:
    columns, rows = weights.sum(axis=0), weights.sum(axis=1)
    mean = [columns @ np.arange(columns.size), rows @ np.arange(rows.size)]
    return np.array(mean) / columns.sum()


def _spots(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    red, green = image[..., 0].astype(float), image[..., 1].astype(float)
    return _centroid(red), _centroid(green)


def _check_flow(before: Sample, after: Sample) -> None:
    red, green = _spots(after.image)
    found = green - red
    column, row = np.rint(red).astype(int)
    height_m = float(after.agl_m[row, column])
    assert height_m == ROOF_M
    said = height_m * after.scale_px_per_m * angle_to_vector(np.float64(after.angle_rad))
    turn = math.atan2(found[0] * said[1] - found[1] * said[0], float(found @ said))
    assert abs(math.degrees(turn)) < 0.1
    assert np.hypot(*said) == pytest.approx(np.hypot(*found), rel=0.002)
    old_red, old_green = _spots(before.image)
    length_m = np.hypot(*(old_green - old_red)) * before.gsd_m
    assert np.hypot(*found) * after.gsd_m == pytest.approx(length_m, rel=0.002)
    # Image and heights move together: the roof is where its spot is, to a fraction of a pixel
    # (picking the nearest height along whole columns costs up to 0.2 px, a wrong centre 0.5).
    assert _centroid((after.agl_m == ROOF_M).astype(float)) == pytest.approx(red, abs=0.25)
    known = after.agl_m[~np.isnan(after.agl_m)]
    assert np.isin(known, before.agl_m).all()
    assert 0 <= after.angle_rad < 2 * math.pi


MAPS = {
    "zoom in": PixelMap(zoom=1.25),
    "zoom out": PixelMap(zoom=0.8),
    "rotation": PixelMap(rotation_rad=math.radians(22)),
    "rotation back": PixelMap(rotation_rad=math.radians(-37.3)),
    **{symmetry.name: PixelMap(symmetry) for symmetry in SYMMETRIES},
    **{
        f"chain {symmetry.name}": PixelMap(symmetry, 1.13, math.radians(-17), 0.4, 0.7)
        for symmetry in SYMMETRIES
    },
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("crop_size", "downsample"), [(None, 1), (620, 1), (None, 2), (320, 2)])
def test_displaced_points_are_found_again(
    name: str, crop_size: int | None, downsample: int
) -> None:
    for angle_rad in (0.3, 4.0):
        before = _scene(angle_rad)
        _check_flow(before, apply_map(before, MAPS[name], crop_size, downsample))


@pytest.mark.parametrize("level", LEVELS)
def test_displaced_points_are_found_again_in_what_a_level_draws(level: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        before = _scene(float(rng.uniform(0, 2 * math.pi)))
        pixel_map = draw_map(LEVEL_RANGES[level], rng)
        downsample = int(rng.integers(1, 3))
        _check_flow(before, apply_map(before, pixel_map, 640 // downsample, downsample))


def test_levels_draw_what_the_protocol_says() -> None:
    rng = np.random.default_rng(0)
    maps = [draw_map(LEVEL_RANGES["light"], rng) for _ in range(2000)]
    turns = np.degrees([pixel_map.rotation_rad for pixel_map in maps])
    zooms = np.array([pixel_map.zoom for pixel_map in maps])
    assert 21 < turns.max() <= 22
    assert -22 <= turns.min() < -21
    assert 1.15 < zooms.max() <= 1.1 / 0.9
    assert 0.9 * 0.9 <= zooms.min() < 0.87
    assert len({pixel_map.symmetry.name for pixel_map in maps}) == 8
    safe = [draw_map(LEVEL_RANGES["safe"], rng) for _ in range(200)]
    assert all(pixel_map.lossless for pixel_map in safe)
    assert len({pixel_map.symmetry.name for pixel_map in safe}) == 8


def test_symmetries_and_crops_copy_pixels() -> None:
    sample = _scene(1.0, (64, 90))
    rng = np.random.default_rng(1)
    sample = sample._replace(image=rng.integers(0, 255, (64, 90, 3), dtype=np.uint8))
    augmentation = build_augmentation("d4_only", 48)
    windows = {
        symmetry.apply_numpy(sample.image[top : top + 48, left : left + 48]).tobytes()
        for symmetry in SYMMETRIES
        for top in range(64 - 48 + 1)
        for left in range(90 - 48 + 1)
    }
    seen = set()
    for seed in range(300):
        augmentation.set_seed(seed)
        crop = augmentation(*sample).image.tobytes()
        assert crop in windows
        seen.add(crop)
    assert len(seen) > 250


def test_crops_reach_every_part_of_the_image() -> None:
    sample = _scene(0.0, (40, 60))
    columns = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None], (40, 60, 3))
    augmentation = build_augmentation("none", 24)
    lefts = {int(augmentation(columns, *sample[1:]).image[0, 0, 0]) for _ in range(1500)}
    assert lefts == set(range(60 - 24 + 1))


def test_an_image_smaller_than_the_crop_is_padded_without_inventing_heights() -> None:
    sample = _scene(0.7, (50, 70))
    known = np.full_like(sample.agl_m, 5.0)
    for level in ("none", "d4_only"):
        after = build_augmentation(level, 128)(sample.image, known, *sample[2:])
        assert after.image.shape == (128, 128, 3)
        assert np.isfinite(after.agl_m).sum() == known.size
    warped = apply_map(sample._replace(agl_m=known), PixelMap(zoom=1.1, rotation_rad=0.3), 128)
    assert warped.image.shape == (128, 128, 3)
    assert np.isfinite(warped.agl_m).sum() == pytest.approx(known.size * 1.1**2, rel=0.02)
    assert set(np.unique(warped.agl_m[np.isfinite(warped.agl_m)])) == {5.0}


def test_no_data_moves_with_the_image_and_keeps_its_area() -> None:
    before = _scene(2.0)
    old = np.isnan(before.agl_m)
    for pixel_map in MAPS.values():
        after = apply_map(before, pixel_map, None)
        inner = (slice(200, -200), slice(200, -200))  # without what lies outside the image
        area = np.isnan(after.agl_m[inner]).sum()
        assert area == pytest.approx(old.sum() * pixel_map.zoom**2, rel=0.02)


def test_halving_picks_a_known_height_or_none() -> None:
    nan = np.nan
    agl_m = np.array([[1, 9, nan, 4, nan, nan], [9, 9, 4, nan, nan, 7]], dtype=np.float32)
    assert np.array_equal(shrink_heights(agl_m, 2), [[9, 4, nan]], equal_nan=True)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_block_becomes_the_lower_median_of_its_known_heights(factor: int) -> None:
    random = np.random.default_rng(factor)
    agl_m = random.normal(0.0, 20.0, (12 * factor, 30 * factor)).astype(np.float32)
    agl_m[random.random(agl_m.shape) < random.random(agl_m.shape)] = np.nan
    shrunk = shrink_heights(agl_m, factor)
    for y, x in np.ndindex(12, 30):
        block = agl_m[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        known = sorted(block[~np.isnan(block)])
        if 2 * len(known) < factor**2:
            assert np.isnan(shrunk[y, x])
        else:
            assert shrunk[y, x] == known[(len(known) - 1) // 2]


def test_downsampling_is_an_area_mean_with_labels_to_match() -> None:
    before = _scene(1.0, (64, 96))
    after = build_augmentation("none", None, 2)(*before)
    blocks = before.image.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(after.image - blocks).max() <= 0.5
    assert (after.gsd_m, after.scale_px_per_m) == (0.8, 1.5)
    assert after.angle_rad == pytest.approx(1.0, abs=1e-12)
    odd = build_augmentation("none", None, 2)(*_scene(1.0, (65, 97)))
    assert odd.image.shape[:2] == odd.agl_m.shape == (32, 48)


def test_an_image_too_small_to_shrink_is_named() -> None:
    with pytest.raises(InputError, match="5 x 1 pixels cannot be shrunk 2 times"):
        build_augmentation("none", None, 2)(*_scene(0.0, (1, 5)))


def test_very_wide_images_can_be_warped() -> None:
    image = np.zeros((40, 40_000, 3), np.uint8)
    sample = Sample(image, np.ones((40, 40_000), np.float32), 0.5, 1.0, 0.0)
    far = PixelMap(rotation_rad=0.2, place_x=1.0)
    assert np.isfinite(apply_map(sample, far, 16).agl_m).mean() > 0.8


def test_one_seed_reproduces_and_another_differs() -> None:
    sample = _scene(1.0, (120, 120))
    for level in LEVELS:
        augmentation, other = build_augmentation(level, 64), build_augmentation(level, 64)
        draws = []
        for seed in (1, 2, 1):
            augmentation.set_seed(seed)
            draws.append([augmentation(*sample) for _ in range(2)])
        other.set_seed(1)
        again = [other(*sample) for _ in range(2)]
        for first, third, fresh in zip(draws[0], draws[2], again, strict=True):
            assert np.array_equal(first.image, third.image)
            assert np.array_equal(first.image, fresh.image)
            assert np.array_equal(first.agl_m, fresh.agl_m, equal_nan=True)
            assert first[2:] == third[2:] == fresh[2:]
        assert not np.array_equal(draws[0][0].agl_m, draws[1][0].agl_m, equal_nan=True)


def _shift_px(before: np.ndarray, after: np.ndarray) -> float:
    """Length of the displacement that best explains one picture by the other (least squares)."""
    old, new = (picture.astype(float).mean(axis=2) for picture in (before, after))
    slope_y, slope_x = np.gradient(old)
    terms = [part[8:-8, 8:-8].ravel() for part in (old, np.ones_like(old), slope_x, slope_y)]
    gain, _, x, y = np.linalg.lstsq(np.stack(terms, axis=1), new[8:-8, 8:-8].ravel(), rcond=None)[0]
    return math.hypot(x, y) / gain


def _texture() -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(128, 128, 3)), (0, 0), 3)
    return np.clip(127 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def _every_colour_change() -> list[A.BasicTransform]:
    """All of `hard`, which holds all others; without dropout, whose holes no shift explains."""
    transforms: list[A.BasicTransform] = []
    for transform in levels.hard():
        transforms += getattr(transform, "transforms", [transform])
    return [transform for transform in transforms if not isinstance(transform, A.CoarseDropout)]


@pytest.mark.parametrize("transform", _every_colour_change(), ids=lambda t: type(t).__name__)
def test_colour_changes_move_nothing(transform: A.BasicTransform) -> None:
    image = _texture()
    assert _shift_px(image[:, 1:], image[:, :-1]) == pytest.approx(1, abs=0.1)
    transform.p, shifts = 1.0, []
    for seed in range(40):
        transform.set_random_seed(seed)
        after = transform(image=image)["image"]
        assert (after.dtype, after.shape) == (image.dtype, image.shape)
        shifts.append(_shift_px(image, after))
    assert max(shifts) < 0.3
    assert np.mean(shifts) < 0.1


def test_colour_changes_act_independently_of_each_other_and_of_the_symmetry() -> None:
    """Seeding each transform alike would make all of them act or rest together."""
    colours, seen = levels.light(), []
    level = Level(SpatialRange(), lambda: colours)
    augmentation = Augmentation(level, None, 1)
    names = [type(transform).__name__ for transform in colours]
    assert augmentation._colours is not None
    image, agl_m = _texture()[:32, :32], np.zeros((32, 32), np.float32)
    original = A.BasicTransform.__call__
    for seed in range(400):
        acted: set[str] = set()

        def spy(self: A.BasicTransform, *args: Any, acted: set[str] = acted, **data: Any) -> Any:
            result = original(self, *args, **data)
            if not np.array_equal(result["image"], data["image"]):
                acted.add(type(self).__name__)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(A.BasicTransform, "__call__", spy)
            augmentation.set_seed(seed)
            augmentation(image, agl_m, 0.5, 1.0, 0.0)
        seen.append([name in acted for name in names])
    acts = np.array(seen, dtype=float)[:, [names.index(name) for name in names if name != "OneOf"]]
    correlation = np.corrcoef(acts.T) - np.eye(acts.shape[1])
    assert np.abs(correlation).max() < 0.2
    assert acts.mean(axis=0) == pytest.approx([0.3, 0.3, 0.5, 0.15], abs=0.08)


def test_haze_whitens_unevenly_and_hides_contrast() -> None:
    haze = levels.Haze(p=1)
    haze.set_random_seed(0)
    image = _texture()
    hazy = haze(image=image)["image"]
    assert hazy.std() < 0.95 * image.std()
    assert hazy.mean() > image.mean()
    black = haze(image=np.zeros_like(image))["image"].astype(float)
    assert np.ptp(black) > 5
    assert np.abs(np.diff(black, axis=0)).max() <= 3


def test_sensor_noise_has_the_deviation_asked_for_and_no_bias() -> None:
    for level in (40, 200):
        noise = levels.SensorNoise(electronic=(3, 3), light=(8, 8), p=1)
        image = np.full((256, 256, 3), level, np.uint8)
        noise.set_random_seed(4)
        change = noise(image=image)["image"].astype(float) - level
        assert change.std() == pytest.approx(math.sqrt(9 + 64 * level / 255), rel=0.02)
        assert abs(change.mean()) < 0.1
        pixels = change.reshape(-1, 3)
        assert np.abs(np.corrcoef(pixels.T) - np.eye(3)).max() < 0.02
        assert abs(np.corrcoef(pixels[:-1, 0], pixels[1:, 0])[0, 1]) < 0.02


def test_inputs_are_not_written_to() -> None:
    sample = _scene(1.0, (80, 80))
    sample.image.setflags(write=False)
    sample.agl_m.setflags(write=False)
    for level in LEVELS:
        for crop_size in (None, 48):
            made = build_augmentation(level, crop_size, 2 if crop_size is None else 1)(*sample)
            assert made.image.shape == ((crop_size or 40), (crop_size or 40), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("strong", 64), "augmentation level is 'strong', expected none, d4_only"),
        (("safe", 0), "crop_size is 0"),
        (("safe", 64.0), "crop_size is 64.0"),
        (("safe", 64, 0), "downsample is 0"),
        (("safe", 64, None), "downsample is None"),
    ],
)
def test_bad_settings_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_augmentation(*arguments)


def test_a_range_of_nothing_draws_the_identity() -> None:
    pixel_map = draw_map(SpatialRange(), np.random.default_rng(0))
    assert pixel_map.lossless
    assert np.array_equal(pixel_map.linear, np.eye(2))
