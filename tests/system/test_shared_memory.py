"""Little room in /dev/shm is found out before a worker starts, and training goes on."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from geopose.system import shared_memory
from geopose.system.shared_memory import free_shared_bytes, workers_that_fit
from tests.training_run import train


@pytest.mark.parametrize(
    ("free", "found"),
    [
        (10**9, (4, 4)),  # 17 batches of 10 MB are needed
        (212_500_001, (4, 4)),
        (200_000_000, (4, 3)),
        (64_000_000, (4, 1)),
        (40_000_000, (2, 1)),
        (20_000_000, (0, 4)),
        (64_000, (0, 4)),
        (0, (0, 4)),
    ],
)
def test_what_fits(free: int, found: tuple[int, int]) -> None:
    assert workers_that_fit(4, 4, 10_000_000, free) == found


def test_a_system_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path / "none")
    assert free_shared_bytes() is None


@pytest.mark.parametrize("free", [64_000, 300_000])
def test_training_goes_on(
    sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, free: int,
) -> None:  # fmt: skip
    small = SimpleNamespace(f_bavail=free // 1000, f_frsize=1000)
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: small)
    train(
        sample_dir, tmp_path / "run", "train.epochs=1", "train.loaders.train.num_workers=2",
        "train.loaders.valid.num_workers=1",
    )  # fmt: skip
    assert caplog.text.count("/dev/shm has 0 MB free") == 2
    assert "0 of 2 worker processes" in caplog.text
    assert (tmp_path / "run" / "metrics.csv").is_file()
