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
from tests.training_run import composed, tiny_overrides

ROOT = Path(__file__).resolve().parents[1]
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
