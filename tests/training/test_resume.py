"""A run that is killed anywhere and started again ends with the weights of one that was not."""

import csv
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from geopose.checkpoints.formats import pth
from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.errors import InputError
from geopose.training.callbacks.score import ScoreCallback
from geopose.training.resume import position
from geopose.training.runner import GeoposeRunner
from tests.forked_run import kill_at_call, run_forked
from tests.training_run import tiny_overrides, train, weights

# Everything with a memory: momentum, average, schedule, accumulation, dropout, early stopping; and
# what follows from the epoch or is found out at the start. Saves after every update.
MEMORY = (
    "train.epochs=2",
    "train.ema=0.9",
    "optimizer.accumulation=2",
    "optimizer=ranger21",
    "optimizer.precision=fp32",
    "scheduler=flat_cos",
    "train.augmentations=light",
    "train.height_warp={probability: 0.5, factor: [0.6, 1.6]}",
    "train.mixup=0.4",
    "train.balance_cities=true",
    "train.plain_epochs=1",
    "loss=r2",
    "train.early_stopping=20",
    "train.save_every_minutes=0",
    "batch_size=1",
    "runner.top_k=2",
)
TIMED = ("images_per_s", "data_wait_s", "data_wait_share")
FOLDER = "checkpoints_mean_r2"
Trap = Callable[[], None]
# An epoch is 8 training batches, then one of validation and one more with the average.
KILLS: dict[str, tuple[Any, str, int]] = {
    "in the middle of an accumulation": (GeoposeRunner, "handle_batch", 4),
    "second epoch": (GeoposeRunner, "handle_batch", 10 + 3),
    "in validation": (ScoreCallback, "on_batch_end", 9),
    "between best and last checkpoint": (position, "_write_last", 5),
    "in the middle of a save": (pth, "_to_disk", 9),
}


def contents(run_dir: Path) -> dict[str, Any]:
    """What must be equal between runs, from every file of a run directory."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.glob("checkpoints_*/[!p]*.pth")):  # previous.pth: of when it saved
        payload = load_checkpoint(path)
        name = path.relative_to(run_dir).as_posix()
        for key in ("model_state_dict", "ema_state_dict", "optimizer_state_dict", "epoch"):
            found[f"{name} {key}"] = payload.get(key)
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found["metrics.csv"] = [{k: v for k, v in row.items() if k not in TIMED} for row in rows]
    found["scalars"] = scalars(run_dir)
    return found


def scalars(run_dir: Path) -> list[tuple[str, str, int, float]]:
    """(loader, tag, step, value) of every scalar that TensorBoard would read, times left out."""
    events = []
    for path in sorted((run_dir / "tensorboard").rglob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.dtype == 1 and not value.tag.startswith(TIMED):
                    number = value.tensor.float_val[0]
                    events.append((path.parent.name, value.tag, event.step, number))
    return sorted(events)


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    """Equality to the last bit of nested containers of tensors and numbers."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where} {key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}[{number}]")
    else:
        assert first == second or (first != first and second != second), where


@pytest.fixture(scope="module")
def whole(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_forked(tiny_overrides(sample_dir, folder, *MEMORY)) == [0]
    return folder


@pytest.mark.parametrize("point", KILLS)
def test_a_killed_run_goes_on_to_the_same_weights(
    whole: Path, sample_dir: Path, tmp_path: Path, point: str
) -> None:
    owner, name, call = KILLS[point]
    run, arguments = tmp_path / "run", tiny_overrides(sample_dir, tmp_path / "run", *MEMORY)
    killed = run_forked(arguments, lambda _: kill_at_call(owner, name, call, signal.SIGKILL))
    assert killed == [-signal.SIGKILL]
    assert run_forked(arguments) == [0]
    assert_equal(contents(whole), contents(run))
    assert not list(run.rglob(".*partial*"))


@pytest.mark.parametrize(
    ("point", "number", "position"),
    [("second epoch", signal.SIGTERM, (1, 4)), ("in validation", signal.SIGUSR1, (0, 8))],
)
def test_a_signal_saves_and_tells_the_scheduler(
    whole: Path,
    sample_dir: Path,
    tmp_path: Path,
    point: str,
    number: int,
    position: tuple[int, int],
) -> None:
    owner, name, call = KILLS[point]
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = tiny_overrides(sample_dir, run, *MEMORY, "train.save_every_minutes=null")
    code = run_forked(arguments, lambda _: kill_at_call(owner, name, call, number), log=log)
    assert code == [128 + number]
    assert f"stopped by signal {number}" in log.read_text().splitlines()[-1]
    state = load_checkpoint(run / FOLDER / "last.pth")["resume"]
    assert (state["epoch"], state["batch"]) == position
    # Nothing but the checkpoint: its config is the run's.
    last = run / FOLDER / "last.pth"
    assert run_forked([f"checkpoint={last}", "resume=true"]) == [0]
    assert_equal(contents(whole), contents(run))


def test_two_processes_go_on_to_the_same_weights(sample_dir: Path, tmp_path: Path) -> None:
    more = ("train.epochs=2", "train.save_every_minutes=0", "batch_size=1", "train.ema=0.9")
    runs = tmp_path / "whole", tmp_path / "killed"
    arguments = [tiny_overrides(sample_dir, run, *more) for run in runs]
    assert run_forked(arguments[0], processes=2) == [0, 0]

    def trap(rank: int) -> None:
        if rank == 1:
            kill_at_call(GeoposeRunner, "handle_batch", 3, signal.SIGKILL)

    codes = run_forked(arguments[1], trap, processes=2, log=tmp_path / "log")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    state = load_checkpoint(runs[1] / FOLDER / "last.pth")["resume"]
    assert (state["epoch"], state["batch"]) == (0, 2)
    assert run_forked(arguments[1], processes=2) == [0, 0]
    assert_equal(contents(runs[0]), contents(runs[1]))


def test_a_full_disk_ends_the_run_in_one_line_with_the_last_checkpoint_intact(
    sample_dir: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = tiny_overrides(sample_dir, run, "train.epochs=1")
    assert run_forked(arguments) == [0]
    last = run / FOLDER / "last.pth"
    before = last.read_bytes()

    def fill(rank: int) -> None:
        del rank
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    assert run_forked([*arguments, "train.epochs=3"], fill, log=log) == [1]
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in log.read_text()
    assert ".pth" in errors[0]
    assert last.read_bytes() == before
    assert run_forked([*arguments, "train.epochs=2"]) == [0]
    assert load_checkpoint(last)["epoch"] == 2
    assert load_checkpoint(run / FOLDER / "previous.pth")["epoch"] == 1


def test_a_broken_last_checkpoint_is_said_and_the_one_before_used(
    sample_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(sample_dir, tmp_path / "run")
    whole_weights = weights(run / FOLDER / "last.pth")
    (run / FOLDER / "last.pth").write_bytes(b"PK broken")
    train(sample_dir, run)
    assert "previous.pth instead" in caplog.text
    assert_equal(whole_weights, weights(run / FOLDER / "last.pth"))


def test_more_epochs_go_on_with_the_longer_schedule(
    sample_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = train(sample_dir, tmp_path / "run", "scheduler=cos", "train.epochs=1")
    short = load_checkpoint(run / FOLDER / "last.pth")
    train(sample_dir, run, "scheduler=cos", "train.epochs=2")
    assert "train.epochs 1 -> 2" in caplog.text
    last = load_checkpoint(run / FOLDER / "last.pth")
    assert (short["epoch"], last["epoch"]) == (1, 2)
    assert last["optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed=7",), "seed=42, not 7"),
        (("optimizer.lr=0.5", "batch_size=1"), "optimizer.lr=0.001, not 0.5; batch_size=2, not 1"),
        (("resume=false",), "already holds a run"),
        (("dataset.fold=1",), "dataset.fold=0, not 1"),
    ],
)
def test_another_run_in_the_same_directory_is_refused(
    sample_dir: Path, whole_small: Path, change: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(sample_dir, whole_small, "train.epochs=1", *change)


@pytest.fixture(scope="module")
def whole_small(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(sample_dir, tmp_path_factory.mktemp("small") / "run", "train.epochs=1")


def test_other_images_are_refused(sample_dir: Path, whole_small: Path, tmp_path: Path) -> None:
    for path in sample_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    table = tmp_path / "geopose_train.csv"
    rows = table.read_text().splitlines()
    table.unlink()
    table.write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    with pytest.raises(InputError, match="other images"):
        train(tmp_path, whole_small, "train.epochs=2")


def test_a_checkpoint_without_training_state_is_refused(
    sample_dir: Path, whole_small: Path
) -> None:
    best = whole_small / FOLDER / "best.pth"
    with pytest.raises(InputError, match="no training state"):
        train(sample_dir, whole_small, f"checkpoint={best}", "resume=true")
    with pytest.raises(InputError, match="say which run"):
        train(sample_dir, whole_small, "experiment=null", "resume=true")
    with pytest.raises(InputError, match="checkpoint=demo is no run that could go on"):
        train(sample_dir, whole_small, "experiment=null", "checkpoint=demo", "resume=true")


def test_workers_outlive_a_signal_to_the_whole_job(sample_dir: Path, tmp_path: Path) -> None:
    """Schedulers signal every process of a job; the loader's must serve until the save."""

    def trap(rank: int) -> None:
        del rank
        os.setpgid(0, 0)
        original = GeoposeRunner.handle_batch

        def handle(self: GeoposeRunner, batch: Any) -> None:
            if self.epoch_batch == 1:
                os.killpg(0, signal.SIGTERM)
            original(self, batch)

        GeoposeRunner.handle_batch = handle  # type: ignore[method-assign]

    more = ("train.loaders.train.num_workers=1", "batch_size=1", "optimizer.accumulation=3")
    log = tmp_path / "log"
    arguments = tiny_overrides(sample_dir, tmp_path / "run", *more)
    assert run_forked(arguments, trap, log=log) == [143], log.read_text()
    state = load_checkpoint(tmp_path / "run" / FOLDER / "last.pth")["resume"]
    assert (state["epoch"], state["batch"]) == (0, 3)
