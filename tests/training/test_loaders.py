"""Loaders: what they hand out, ahead of time and without keeping any of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from geopose.construct import plain
from geopose.errors import InputError
from geopose.training.check import check_config
from geopose.training.data.loaders import build_loaders
from geopose.training.data.resources import Resources
from tests.programs import ROOT
from tests.tiny_data import write_data_dir
from tests.training_run import composed, tiny_overrides

ALLOWED_MB = 12.0


def _config(sample_dir: Path, *more: str) -> dict[str, Any]:
    return plain(composed(*tiny_overrides(sample_dir, Path("none"), *more)))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux")
def test_memory_does_not_grow_with_epochs(sample_dir: Path) -> None:
    command = [sys.executable, "-m", "tests.loader_memory", str(sample_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    growth, leak = map(float, done.stdout.split())
    assert growth < ALLOWED_MB
    assert leak > ALLOWED_MB  # the measure would see one


def test_workers_stay_and_prepare_ahead(sample_dir: Path) -> None:
    cfg = _config(sample_dir, "train.loaders.train.prefetch=3")
    loaders = build_loaders(cfg, Resources(2, 0, 1), torch.device("cpu"))
    train, valid = loaders["train"], loaders["valid"]
    assert (train.num_workers, train.prefetch_factor, train.persistent_workers) == (2, 3, True)
    assert (valid.num_workers, valid.persistent_workers) == (0, False)
    with pytest.raises(InputError, match=r"train\.loaders\.train\.prefetch"):
        check_config(_config(sample_dir, "train.loaders.train.prefetch=0"))


@pytest.mark.parametrize(
    ("images", "num_folds", "parts"),
    [(160, 5, (64, 32)), (254, 2, (64, 64)), (75, 5, (60, 15))],
    ids=["128 and 32", "127 each", "60 and 15"],
)
def test_fast_keeps_64_images_of_either_part_from_all_cities(
    tmp_path: Path, images: int, num_folds: int, parts: tuple[int, int]
) -> None:
    """Of two cities, one after the other in the list, as many images each."""
    cities = ["AAA"] * (images // 2) + ["BBB"] * (images - images // 2)
    data = write_data_dir(tmp_path / "data", cities, (16, 16), ".png")
    cfg = _config(data, "train.fast=true", f"dataset.num_folds={num_folds}")
    loaders = build_loaders(cfg, Resources(0, 0, 1), torch.device("cpu"))
    for name, expected in zip(("train", "valid"), parts, strict=True):
        records: Any = loaders[name].dataset
        kept = [record.city for record in records.records]
        assert len({record.image_id for record in records.records}) == len(kept) == expected
        assert abs(kept.count("AAA") - kept.count("BBB")) <= 2  # as the folds are drawn
