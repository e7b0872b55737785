"""What training sees: files of a scene with known flow go through the data set, points are found.

Two bright dots lie where a roof is seen and where its ground point lies. Whatever a level draws,
the labels of the sample must lead from the one to the other, found again by their centroids, and
the distance between them in metres must stay.
"""

import math
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from geopose import keys
from geopose.augment.build import build_augmentation
from geopose.augment.common_gsd import Resize
from geopose.augment.levels import LEVELS
from geopose.data.dataset import GeoposeDataset
from geopose.data.heights import write_agl_cm
from geopose.data.layout import ImageRecord
from geopose.data.rgb import write_png
from geopose.data.vflow import write_vflow
from geopose.models.normalization import denormalize_image

ROOF_M, GROUND_M, GSD_M, SCALE = 80.0, 1.25, 0.4, 3.0
DOT_PX, DISC_PX, HOLE_PX = 7.0, 30, 24
SIZES = ((700, 760), (761, 703))  # even, and odd for halving
ANGLES = (0.4, 2.9, 5.1)


def _write_scene(folder: Path, name: str, size: tuple[int, int], angle_rad: float) -> ImageRecord:
    """Dots 240 px apart on discs of one height each; a disc without data between them."""
    centre = np.array([size[1] / 2 + 3.3, size[0] / 2 - 2.7])
    half = ROOF_M * SCALE / 2 * np.array([math.sin(angle_rad), math.cos(angle_rad)])
    y, x = np.mgrid[: size[0], : size[1]]
    light = np.full(size, 40.0)
    agl_m = np.round(0.5 * np.hypot(x % 7, y % 5), 2)
    for dot, height_m in ((centre - half, ROOF_M), (centre + half, GROUND_M)):
        distance = np.hypot(x - dot[0], y - dot[1])
        light += 170 * np.exp(-(distance**2) / (2 * DOT_PX**2))
        agl_m[distance < DISC_PX] = height_m
    agl_m[np.hypot(x - centre[0], y - centre[1]) < HOLE_PX] = np.nan
    rgb = folder / f"{name}_RGB.png"
    write_png(rgb, np.repeat(np.rint(light).astype(np.uint8)[..., None], 3, axis=2))
    agl, vflow = folder / f"{name}_AGL.tif", folder / f"{name}_VFLOW.json"
    write_agl_cm(agl, agl_m.astype(np.float32), allow_nodata=True)
    write_vflow(vflow, SCALE, angle_rad)
    return ImageRecord(name, "SYA", GSD_M, rgb, agl, vflow)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Scenes of both sizes and several directions."""
    folder = tmp_path_factory.mktemp("scenes")
    return [
        _write_scene(folder, f"{number}{size[0]}", size, angle)
        for number, angle in enumerate(ANGLES)
        for size in SIZES
    ]


def _dot(light: np.ndarray, disc: np.ndarray, radius: float) -> np.ndarray:
    """Centroid of the light above its surroundings, near the middle of a disc of heights."""
    rows, columns = np.flatnonzero(disc.any(axis=1)), np.flatnonzero(disc.any(axis=0))
    top, left = max(rows[0] - 10, 0), max(columns[0] - 10, 0)
    light = light[top : rows[-1] + 11, left : columns[-1] + 11]
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    place = np.array([columns.mean() - left, rows.mean() - top])
    for _ in range(4):
        distance = np.hypot(x - place[0], y - place[1])
        floor = np.median(light[(distance > radius) & (distance < 1.4 * radius)])
        floor += 0.1 * (light[distance < radius].max() - floor)  # noise weighs nothing
        weights = np.where(distance < radius, np.clip(light - floor, 0, None), 0)
        place = np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()
    return place + np.array([left, top])


def _check(sample: dict[str, Any]) -> bool:
    """Compares labels and dots of a sample; False when a dot is not wholly in the crop."""
    agl_m = sample[keys.TARGET_AGL_MASK][0].numpy()
    scale, gsd_m = (
        float(sample[key]) for key in (keys.TARGET_VFLOW_SCALE, keys.INPUT_GROUND_SAMPLE_DISTANCE)
    )
    zoom = scale / SCALE
    assert gsd_m == pytest.approx(GSD_M / zoom, rel=1e-6)
    magnitude = sample[keys.TARGET_MAGNITUDE_MASK][0].numpy()
    np.testing.assert_allclose(magnitude, agl_m * scale, rtol=1e-6)
    direction = sample[keys.TARGET_VFLOW_DIRECTION].numpy()
    angle_rad = float(sample[keys.TARGET_VFLOW_ANGLE])
    assert direction == pytest.approx([math.sin(angle_rad), math.cos(angle_rad)], abs=1e-6)
    light = denormalize_image(sample[keys.INPUT_IMAGE_KEY], "rgb").mean(axis=2)
    dots = []
    for height_m in (ROOF_M, GROUND_M):
        disc = agl_m == np.float32(height_m)
        if disc.sum() < 0.97 * math.pi * (DISC_PX * zoom) ** 2:
            return False
        dots.append(_dot(light, disc, 0.75 * DISC_PX * zoom))
    found, said = dots[1] - dots[0], ROOF_M * scale * direction
    turn = math.degrees(math.atan2(found[0] * said[1] - found[1] * said[0], found @ said))
    assert abs(turn) < 0.1
    assert np.hypot(*said) == pytest.approx(np.hypot(*found), rel=0.002)
    assert np.hypot(*found) * gsd_m == pytest.approx(ROOF_M * SCALE * GSD_M, rel=0.002)
    middle = np.rint((dots[0] + dots[1]) / 2).astype(int)
    reach = int(1.3 * HOLE_PX * zoom)
    hole = np.isnan(
        agl_m[middle[1] - reach : middle[1] + reach, middle[0] - reach : middle[0] + reach]
    )
    assert hole.sum() == pytest.approx(math.pi * (HOLE_PX * zoom) ** 2, rel=0.06)
    return True


@pytest.mark.parametrize(("crop_size", "downsample"), [(None, 1), (640, 1), (None, 2), (330, 2)])
@pytest.mark.parametrize("level", LEVELS)
def test_labels_of_training_samples_lead_from_dot_to_dot(
    records: list[ImageRecord],
    level: str,
    crop_size: int | None,
    downsample: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Holes would cut pieces out of the dots; everything else is as in training.
    monkeypatch.setattr(A.CoarseDropout, "apply", lambda self, img, **parameters: img)
    augmentation = build_augmentation(level, crop_size, downsample)
    dataset = GeoposeDataset(records, "rgb", augmentation, seed=11, cache=True)
    ground = {round(0.5 * math.hypot(x, y), 2) for x in range(7) for y in range(5)}
    written = np.float32([*ground, ROOF_M, GROUND_M])
    checked = 0
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            sample = dataset[index]
            heights = np.unique(sample[keys.TARGET_AGL_MASK].numpy())
            assert set(heights[~np.isnan(heights)]) <= set(written)
            checked += _check(sample)
    assert checked >= 8


@pytest.mark.parametrize("gsd_m", [0.1, 0.2, 0.25, 0.3, 0.37, 0.5, 0.7, 1.1])
def test_heights_brought_to_one_gsd_do_not_shift_against_the_image(gsd_m: float) -> None:
    """A slope of 1 m a pixel to the right and below, as heights and as grey values."""
    y, x = np.mgrid[:120, :100].astype(np.float32)
    step = max(1, 0.5 / gsd_m)  # pixels of the image in one that comes out
    resize = Resize.between(x.shape, gsd_m, 0.5)
    for slope in (x, y):
        off = []
        for way in (slope, -slope):
            found = resize.heights(way)
            shown = resize.image(torch.from_numpy(way)[None, None])[0, 0].numpy()
            off.append((found - shown)[2:-2, 2:-2])
            assert np.abs(off[-1]).max() <= 1.01 * step
        # The lower of two middle heights is lower both ways; what is moved is lower one way only.
        assert abs(off[0].mean() - off[1].mean()) / 2 < 0.05 * step


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("gsd_m", [0.3, 0.55])
@pytest.mark.parametrize("crop_size", [None, 640])
@pytest.mark.parametrize("level", ["none", "d4_only", "light"])
def test_images_brought_to_one_gsd_keep_heights_and_flow_in_metres(
    records: list[ImageRecord], level: str, crop_size: int | None, gsd_m: float, cache: bool
) -> None:
    augmentation = build_augmentation(level, crop_size)
    dataset = GeoposeDataset(records, "rgb", augmentation, seed=5, cache=cache, gsd_m=gsd_m)
    least, largest = LEVELS[level].spatial.gsd_factors
    checked = 0
    for index, record in enumerate(records):
        sample = dataset[index]
        found = float(sample[keys.INPUT_GROUND_SAMPLE_DISTANCE])
        assert 0.999 * gsd_m * least <= found <= 1.001 * gsd_m * largest  # whole pixels
        if level == "none" and crop_size is None:
            size = np.array(SIZES[index % len(SIZES)]) * (record.gsd_m / gsd_m)
            np.testing.assert_array_equal(sample[keys.INPUT_IMAGE_KEY].shape[1:], np.rint(size))
        checked += _check(sample)
    assert checked >= 3


@pytest.mark.parametrize("level", ["none", "hard"])
def test_crops_larger_than_the_image_know_no_heights_outside(
    records: list[ImageRecord], level: str
) -> None:
    dataset = GeoposeDataset(records, "rgb", build_augmentation(level, 1024), seed=3)
    for index, record_size in enumerate(SIZES):
        sample = dataset[index]
        assert sample[keys.INPUT_IMAGE_KEY].shape == (3, 1024, 1024)
        known = int(torch.isfinite(sample[keys.TARGET_AGL_MASK]).sum())
        zoom = float(sample[keys.TARGET_VFLOW_SCALE]) / SCALE
        area = (record_size[0] * record_size[1] - math.pi * HOLE_PX**2) * zoom**2
        assert known <= 1.01 * area
        if level == "none":
            assert known == pytest.approx(area, rel=1e-3)
            assert _check(sample)
