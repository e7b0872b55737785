"""Waiting for data is measured where it happens, and only there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from geopose.training.data import data_wait
from geopose.training.data.data_wait import DataWaitCallback, TimedLoader
from tests.training_run import train


class _Clock:
    """Time that passes only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class _Slow(Dataset[int]):
    """Three samples of 2 s each."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        self.clock.now += 2.0
        return index


def test_reading_counts_and_computing_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(data_wait, "time", clock)
    loader = TimedLoader(_Slow(clock), batch_size=1)
    callback, runner = DataWaitCallback(), SimpleNamespace(is_train_loader=True, loader=loader)
    runner.epoch_metrics = {"_epoch_": {}}
    for _ in range(2):  # the second epoch starts from nothing
        callback.on_loader_start(runner)
        seen = []
        for batch in loader:
            seen.append(int(batch))
            clock.now += 10.0
        callback.on_loader_end(runner)
        assert seen == [0, 1, 2]
        assert runner.epoch_metrics["_epoch_"] == pytest.approx(
            {"data_wait_s": 6.0, "data_wait_share": 6 / 36}
        )


def test_a_run_keeps_the_wait_of_every_epoch(sample_dir: Path, tmp_path: Path) -> None:
    run_dir = train(sample_dir, tmp_path / "run", "train.epochs=1")
    last: dict[str, Any] = torch.load(
        run_dir / "checkpoints_mean_r2" / "last.pth", weights_only=False
    )
    epoch = last["metrics"]["_epoch_"]
    assert epoch["data_wait_s"] > 0
    assert 0 < epoch["data_wait_share"] <= 1
