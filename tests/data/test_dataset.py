"""Samples: units, channel order, seeds that neither workers nor restarts change, clear errors."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from geopose import keys
from geopose.augment.build import build_augmentation
from geopose.data import dataset as dataset_module
from geopose.data.dataset import GeoposeDataset, worker_init_fn
from geopose.data.heights import read_agl_m, write_agl_cm
from geopose.data.layout import ImageRecord, check_sizes
from geopose.data.layouts.splits import read_split
from geopose.data.rgb import read_rgb
from geopose.errors import InputError
from geopose.models.normalization import denormalize_image, normalize_image
from tests.tiny_data import REALDATA, heights, smooth_rgb, write_data_dir

TILES = REALDATA / "autzen_geopose_tiles"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    root = tmp_path_factory.mktemp("dataset") / "data"
    return read_split(write_data_dir(root, ["JAX", "OMA", "JAX"], suffix=".png"), "train")


def test_bgr_applies_the_rgb_statistics_to_bgr_planes_as_the_published_models_did() -> None:
    rgb = np.array([[[10, 100, 250]]], np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    bgr = (rgb[0, 0, ::-1] - 255 * mean) / (255 * std)
    assert normalize_image(rgb, "bgr")[:, 0, 0].numpy() == pytest.approx(bgr, abs=1e-5)
    in_order = (rgb[0, 0] - 255 * mean) / (255 * std)
    assert normalize_image(rgb, "rgb")[:, 0, 0].numpy() == pytest.approx(in_order, abs=1e-5)
    for order in ("rbg", "", None):
        with pytest.raises(InputError, match="expected rgb or bgr"):
            normalize_image(rgb, order)  # type: ignore[arg-type]


def test_a_batch_has_every_key_in_the_units_of_the_contract(records: list[ImageRecord]) -> None:
    batch = next(iter(DataLoader(GeoposeDataset(records, "rgb"), batch_size=3)))
    shapes = {key: tuple(value.shape) for key, value in batch.items() if hasattr(value, "shape")}
    assert shapes == {
        keys.INPUT_IMAGE_KEY: (3, 3, 64, 64),
        keys.INPUT_INDEX_KEY: (3,),
        keys.INPUT_GROUND_SAMPLE_DISTANCE: (3, 1),
        keys.TARGET_AGL_MASK: (3, 1, 64, 64),
        keys.TARGET_MAGNITUDE_MASK: (3, 1, 64, 64),
        keys.TARGET_VFLOW_SCALE: (3, 1),
        keys.TARGET_VFLOW_ANGLE: (3, 1),
        keys.TARGET_VFLOW_DIRECTION: (3, 2),
    }
    assert batch[keys.INPUT_CITY_NAME] == ["JAX", "OMA", "JAX"]
    assert batch[keys.INPUT_IMAGE_ID_KEY] == ["000", "001", "002"]
    assert batch[keys.TARGET_VFLOW_SCALE][:, 0].tolist() == pytest.approx([1.5, 1.6, 1.7])
    angle = batch[keys.TARGET_VFLOW_ANGLE]
    assert angle[:, 0].tolist() == pytest.approx([0.0, 0.3, 0.6])
    direction = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
    torch.testing.assert_close(batch[keys.TARGET_VFLOW_DIRECTION], direction)
    agl_m = batch[keys.TARGET_AGL_MASK]
    assert np.array_equal(agl_m[1, 0], read_agl_m(records[1].agl or ""), equal_nan=True)
    assert agl_m.isnan().any()
    torch.testing.assert_close(
        batch[keys.TARGET_MAGNITUDE_MASK],
        agl_m * batch[keys.TARGET_VFLOW_SCALE][..., None, None],
        equal_nan=True,
    )
    assert {value.dtype for key, value in batch.items() if key.startswith("TARGET")} == {
        torch.float32
    }


def test_without_targets_only_inputs_are_read(records: list[ImageRecord]) -> None:
    bare = [ImageRecord("a", "JAX", 0.5, records[0].rgb, None, None)]
    sample = GeoposeDataset(bare, "bgr", has_targets=False)[0]
    assert not any(key.startswith("TARGET") for key in sample)
    expected = normalize_image(read_rgb(records[0].rgb), "bgr")
    assert torch.equal(sample[keys.INPUT_IMAGE_KEY], expected)
    with pytest.raises(InputError, match="no heights"):
        GeoposeDataset(bare, "bgr")[0]


def _epochs(
    dataset: GeoposeDataset, epochs: list[int], workers: int, batch_size: int = 2
) -> list[list[dict[str, Any]]]:
    loader = DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=worker_init_fn,
    )
    drawn = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        drawn.append(list(loader))
    return drawn


def _images(epoch: list[dict[str, Any]]) -> torch.Tensor:
    return torch.cat([batch[keys.INPUT_IMAGE_KEY] for batch in epoch])


def _light(records: list[ImageRecord], seed: int = 3, repeats: int = 2) -> GeoposeDataset:
    return GeoposeDataset(
        records, "rgb", build_augmentation("light", 32), seed=seed, repeats=repeats
    )


def test_workers_and_batches_do_not_change_what_is_drawn(records: list[ImageRecord]) -> None:
    alone = _epochs(_light(records), [0, 1], 0)
    workers = _epochs(_light(records), [0, 1], 2)
    larger = _epochs(_light(records), [0, 1], 0, batch_size=6)
    for epoch in range(2):
        assert torch.equal(_images(alone[epoch]), _images(workers[epoch]))
        assert torch.equal(_images(alone[epoch]), _images(larger[epoch]))


def test_epochs_repeats_and_seeds_draw_anew_and_a_resumed_epoch_the_same(
    records: list[ImageRecord],
) -> None:
    first, second = (_images(epoch) for epoch in _epochs(_light(records), [0, 1], 2))
    assert len(first) == 6
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[:3], first[3:], strict=True))
    (resumed,) = _epochs(_light(records), [1], 0)
    assert torch.equal(_images(resumed), second)
    (other,) = _epochs(_light(records, seed=4), [0], 0)
    assert not torch.equal(_images(other), first)


def test_repeats_keep_the_number_of_the_record(records: list[ImageRecord]) -> None:
    dataset = _light(records)
    assert [dataset[index][keys.INPUT_INDEX_KEY] for index in range(6)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(IndexError):
        dataset[6]


def test_targets_stay_consistent_under_augmentation(records: list[ImageRecord]) -> None:
    dataset = _light(records)
    for sample in (dataset[index] for index in range(len(dataset))):
        agl_m, scale = sample[keys.TARGET_AGL_MASK], sample[keys.TARGET_VFLOW_SCALE]
        torch.testing.assert_close(
            sample[keys.TARGET_MAGNITUDE_MASK], agl_m * scale, equal_nan=True
        )
        record = records[sample[keys.INPUT_INDEX_KEY]]
        truth = 1.5 + sample[keys.INPUT_INDEX_KEY] / 10
        # pixels per metre of height and metres per pixel change oppositely
        assert float(scale * sample[keys.INPUT_GROUND_SAMPLE_DISTANCE]) == pytest.approx(
            truth * record.gsd_m, rel=1e-5
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_row_in_one_line_even_from_a_worker(
    tmp_path: Path, workers: int
) -> None:
    data_dir = write_data_dir(tmp_path / "data", ["JAX"])
    records = read_split(data_dir, "train")
    write_agl_cm(data_dir / "train" / "JAX_000_AGL.tif", heights(64, 65), allow_nodata=True)
    loader = DataLoader(GeoposeDataset(records, "rgb"), num_workers=workers)
    with pytest.raises(InputError, match=r"geopose_train\.csv row 2.*64 x 64.*65 x 64") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    assert str(caught.value).startswith(str(data_dir))


def test_unconverted_images_give_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "_warned", False)
    records = read_split(write_data_dir(tmp_path / "data", ["JAX", "OMA"]), "train")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sample = GeoposeDataset(records, "rgb")[0]
    assert [record.getMessage()[:20] for record in caplog.records] == ["2 of 2 images are re"]
    error = sample[keys.INPUT_IMAGE_KEY] - normalize_image(smooth_rgb(64, 64, 0), "rgb")
    assert float(error.abs().mean()) < 0.2


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_a_bad_seed_is_named(records: list[ImageRecord], seed: Any) -> None:
    with pytest.raises(InputError, match="seed is"):
        GeoposeDataset(records, "rgb", seed=seed)


@pytest.mark.skipif(not TILES.is_dir(), reason=f"{TILES} is not there")
def test_real_tiles_listed_as_tiff_need_no_conversion(tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(TILES.resolve())
    names = [path.name.removesuffix("_RGB.tif") for path in sorted(TILES.glob("*_RGB.tif"))]
    rows = [f"{name},{name}_AGL.tif,{name}_VFLOW.json,{name}_RGB.tif" for name in names]
    (tmp_path / "geopose_train.csv").write_text("\n".join(["id,agl,json,rgb", *rows]))
    meta = [f"{name},EUG,0.5" for name in names]
    (tmp_path / "metadata.csv").write_text("\n".join(["id,city,gsd", *meta]))
    tiles = read_split(tmp_path, "train")
    check_sizes(tiles)
    batch = next(iter(DataLoader(_light(tiles), batch_size=8)))
    assert batch[keys.INPUT_IMAGE_KEY].shape == (8, 3, 32, 32)
    # photographed with 1 px/m east and north at 0.5 m: zooming keeps the product with gsd
    product = batch[keys.TARGET_VFLOW_SCALE] * batch[keys.INPUT_GROUND_SAMPLE_DISTANCE]
    assert product[[0, 2, 3], 0].tolist() == pytest.approx([2**0.5 / 2] * 3, rel=1e-5)


def test_cached_samples_are_the_same_and_need_no_files(tmp_path: Path) -> None:
    records = read_split(write_data_dir(tmp_path / "data", ["JAX"], suffix=".png"), "train")
    augmentation = build_augmentation("safe", 32)
    kept = GeoposeDataset(records, "rgb", augmentation, seed=1, repeats=3, cache=True)
    fresh = GeoposeDataset(records, "rgb", augmentation, seed=1, repeats=3)
    wanted = [fresh[i] for i in range(3)]
    first = kept[0]
    for path in (tmp_path / "data" / "train").iterdir():
        path.unlink()
    for got, expected in zip([first, kept[1], kept[2]], wanted, strict=True):
        for key in (keys.INPUT_IMAGE_KEY, keys.TARGET_AGL_MASK, keys.TARGET_VFLOW_ANGLE):
            torch.testing.assert_close(got[key], expected[key], equal_nan=True, atol=0, rtol=0)
    with pytest.raises(InputError):
        fresh[0]


def test_a_normalised_image_can_be_seen_again() -> None:
    rgb = smooth_rgb(8, 8)
    for order in ("rgb", "bgr"):
        np.testing.assert_array_equal(denormalize_image(normalize_image(rgb, order), order), rgb)
