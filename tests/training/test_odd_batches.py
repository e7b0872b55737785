"""Batches that do not stack, or of which BatchNorm learns nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.data.heights import write_agl_cm
from geopose.data.rgb import write_j2k
from geopose.errors import InputError
from geopose.training.data.sampler import SizeBatches
from tests.tiny_data import heights, smooth_rgb, write_data_dir
from tests.training_run import train

SIZES = [(64, 96), (64, 96), (80, 64), (48, 40), (64, 96), (40, 72)]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Six training images, of four sizes."""
    data_dir = write_data_dir(tmp_path / "data", ["JAX", "OMA"] * 3)
    for number, size in enumerate(SIZES):
        name = f"{('JAX', 'OMA')[number % 2]}_{number:03d}"
        write_j2k(data_dir / f"train/{name}_RGB.j2k", smooth_rgb(*size, number))
        agl_m = heights(*size, number)
        write_agl_cm(data_dir / f"train/{name}_AGL.tif", agl_m, allow_nodata=True)
    return data_dir


def test_batches_hold_images_of_one_size_in_order() -> None:
    order = torch.utils.data.SequentialSampler(range(len(SIZES)))
    assert list(SizeBatches(order, SIZES, 4)) == [[0, 1], [2], [3], [4], [5]]
    assert list(SizeBatches(order, SIZES, 1)) == [[0], [1], [2], [3], [4], [5]]
    assert list(SizeBatches(order, [(1, 1)] * 6, 4)) == [[0, 1, 2, 3], [4, 5]]
    assert len(SizeBatches(order, SIZES, 4)) == 5


def test_validation_takes_images_of_any_size(mixed: Path, tmp_path: Path) -> None:
    more = ("train.loaders.valid.batch_size=4", "dataset.num_folds=2", "train.epochs=1")
    best = next(train(mixed, tmp_path / "run", *more).glob("checkpoints_*/best.pth"))
    assert np.isfinite(load_checkpoint(best)["metrics"]["valid"]["metrics/mean_r2"])


def test_whole_images_of_several_sizes_are_refused_before_training(
    mixed: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"row .*set train\.crop_size, or batch_size=1"):
        train(mixed, tmp_path / "run", "train.crop_size=null")
    assert not (tmp_path / "run").exists()


def test_one_value_for_batch_norm_is_refused_before_training(tmp_path: Path) -> None:
    data_dir = write_data_dir(tmp_path / "data", ["JAX"] * 6)
    with pytest.raises(InputError, match=r"batch_size=1 and train\.crop_size=32: .*above 32"):
        train(data_dir, tmp_path / "run", "train.crop_size=32", "batch_size=1")
    assert not (tmp_path / "run").exists()
    train(data_dir, tmp_path / "run", "train.crop_size=33", "batch_size=1", "train.epochs=1")
