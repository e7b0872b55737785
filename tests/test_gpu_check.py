"""The check for GPUs: it says that there is none, and its steps are right, tried on a CPU."""

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check.__main__ import result_file, run_step, table
from benchmarks.gpu_check.common import count_waits
from benchmarks.gpu_check.rows import Row, small
from tests.tiny_run import ENVIRONMENT, ROOT


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts/gpu_check.sh", "--out", tmp_path], env=ENVIRONMENT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: no GPU that torch can use")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("step", ["numbers", "submission", "training"])
def test_steps_that_a_cpu_can_run(tmp_path: Path, step: str) -> None:
    rows = run_step(step, small(tmp_path / step))
    assert rows
    assert [row for row in rows if row.good is False] == []
    assert result_file(tmp_path, step).exists()
    assert table(rows).count("\n") == len(rows) + 1


def test_the_table_shows_what_is_wrong() -> None:
    text = table([Row("memory", "12 bytes"), Row("heights", "9 m", False), Row("angle", "0", True)])
    assert text.splitlines()[2:] == [
        "| memory | 12 bytes |  |", "| heights | 9 m | **no** |", "| angle | 0 | yes |",
    ]  # fmt: skip


def test_no_waits_on_a_cpu() -> None:
    with count_waits(torch.device("cpu")) as waits:
        torch.ones(3).sum().item()
    assert waits.count == 0


@pytest.mark.gpu
def test_waits_are_counted_on_a_gpu() -> None:
    values = torch.ones(3, device="cuda")
    with count_waits(values.device) as waits:
        values.sum()
        assert waits.count == 0
        values.sum().item()
    assert waits.count == 1
