"""Loaders: what they hand out, ahead of time and without keeping any of it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from geopose.construct import plain
from geopose.data.dataset import GeoposeDataset
from geopose.errors import InputError
from geopose.training.check import check_config
from geopose.training.loaders import build_loaders
from geopose.training.resources import Resources
from tests.training_run import composed, tiny_overrides

EPOCHS = 50
ALLOWED_MB = 12.0


def _config(sample_dir: Path, *more: str) -> dict[str, Any]:
    return plain(composed(*tiny_overrides(sample_dir, Path("none"), *more)))


def _memory_mb(loader: DataLoader) -> float:
    """What this process and the loader's workers hold and share with nobody else."""
    workers = loader._iterator._workers  # type: ignore[union-attr]
    total = 0
    for pid in [os.getpid(), *(worker.pid for worker in workers)]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1])
    return total / 1024


def _growth_mb(loader: DataLoader) -> float:
    """From the tenth epoch, when everything has been used once, to the last."""
    before = 0.0
    for epoch in range(EPOCHS):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        for _ in loader:
            pass
        if epoch == 9:
            before = _memory_mb(loader)
    return _memory_mb(loader) - before


def _train_loader(sample_dir: Path) -> DataLoader:
    cfg = _config(sample_dir, "train.augmentations=hard", "train.cache=false")
    return build_loaders(cfg, Resources(1, 0, 1), torch.device("cpu"))["train"]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux")
def test_memory_does_not_grow_with_epochs(
    sample_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _growth_mb(_train_loader(sample_dir)) < ALLOWED_MB
    kept: list[bytes] = []
    sample = GeoposeDataset._sample

    def leaky(self: GeoposeDataset, index: int) -> dict[str, Any]:
        kept.append(os.urandom(1 << 17))
        return sample(self, index)

    monkeypatch.setattr(GeoposeDataset, "_sample", leaky)
    assert _growth_mb(_train_loader(sample_dir)) > ALLOWED_MB  # the measure would see a leak


def test_workers_stay_and_prepare_ahead(sample_dir: Path) -> None:
    cfg = _config(sample_dir, "train.loaders.train.prefetch=3")
    loaders = build_loaders(cfg, Resources(2, 0, 1), torch.device("cpu"))
    train, valid = loaders["train"], loaders["valid"]
    assert (train.num_workers, train.prefetch_factor, train.persistent_workers) == (2, 3, True)
    assert (valid.num_workers, valid.persistent_workers) == (0, False)
    with pytest.raises(InputError, match=r"train\.loaders\.train\.prefetch"):
        check_config(_config(sample_dir, "train.loaders.train.prefetch=0"))
