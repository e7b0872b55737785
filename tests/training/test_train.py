"""Training as a user runs it: commands, run directory, checkpoints, several processes."""

import math
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import geopose.training.fit as fit_module
import geopose.training.runner as runner_module
from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.errors import InputError
from geopose.system.signals import StopSignal
from geopose.training.runner import RunParts
from tests.tiny_run import ENVIRONMENT, ROOT, run_script
from tests.training_run import score_of_checkpoint, tiny_overrides, train, weights

POOLED_ANGLE = "model.orientation_head._target_=geopose.models.heads.DenseOrientationHead"


def run_command_line(
    arguments: list[str], cwd: Path, processes: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The real train.py, as a program of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    env = {k: v for k, v in ENVIRONMENT.items() if k != "DRIVENDATA_OVERHEAD_GEOPOSE"}
    return run_script(
        *(launcher if processes > 1 else []), ROOT / "train.py", *arguments,
        cwd=cwd, env={**env, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five epochs, with panels."""
    folder = tmp_path_factory.mktemp("runs") / "five"
    return train(sample_dir, folder, "train.epochs=5", "train.show=true", "seed=5")


def test_run_directory_is_complete(run_dir: Path) -> None:
    assert (run_dir / "config.yaml").is_file()
    assert list((run_dir / "tensorboard").rglob("*tfevents*"))
    kept = sorted(p.name for p in (run_dir / "checkpoints_mean_r2").iterdir())
    assert len([name for name in kept if name.startswith("epoch_")]) == 3
    assert {"best.pth", "last.pth"} <= set(kept)
    assert "best.pth" in {p.name for p in (run_dir / "checkpoints_loss").iterdir()}


def test_best_checkpoint_is_the_best_epoch_and_scores_what_it_says(
    run_dir: Path, sample_dir: Path
) -> None:
    folder = run_dir / "checkpoints_mean_r2"
    best = load_checkpoint(folder / "best.pth")
    kept = {p: load_checkpoint(p) for p in folder.glob("epoch_*.pth")}
    scores = {p: c["metrics"]["valid"]["metrics/mean_r2"] for p, c in kept.items()}
    assert best["epoch"] == kept[max(scores, key=lambda p: scores[p])]["epoch"]
    claimed = best["metrics"]["valid"]["metrics/mean_r2"]
    assert claimed == max(scores.values())
    assert score_of_checkpoint(folder / "best.pth", sample_dir) == pytest.approx(claimed, abs=1e-4)
    last = load_checkpoint(folder / "last.pth")
    assert last["epoch"] == 5
    assert last["metrics"]["valid"]["metrics/mean_r2"] <= claimed


def test_checkpoint_says_what_it_is(run_dir: Path) -> None:
    best = load_checkpoint(run_dir / "checkpoints_mean_r2" / "best.pth")
    assert best["channel_order"] == "rgb"
    assert best["units"]["agl"] == "m"
    assert best["versions"]["torch"] == torch.__version__
    assert best["checkpoint_data"]["config"]["model"]["slug"] == "sample_unet"
    metrics = best["metrics"]["valid"]
    assert {"loss", "agl", "magnitude", "metrics/agl_r2", "metrics/vflow_r2"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


def test_one_seed_gives_one_model_whatever_the_workers(sample_dir: Path, tmp_path: Path) -> None:
    one = train(sample_dir, tmp_path / "one", "train.epochs=1")
    two = train(sample_dir, tmp_path / "two", "train.epochs=1", "train.loaders.train.num_workers=2")
    other = train(sample_dir, tmp_path / "other", "train.epochs=1", "seed=43")
    first, second, third = (
        weights(run / "checkpoints_mean_r2" / "last.pth") for run in (one, two, other)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_every_switch_trains(sample_dir: Path, tmp_path: Path) -> None:
    switches = (
        "train.epochs=1",
        "train.mixup=0.4",
        "train.fast=true",
        "train.downsample=2",
        "train.augmentations=light",
        "train.height_warp={probability: 0.5, factor: [0.6, 1.6]}",
        "optimizer.accumulation=2",
        "optimizer.precision=bf16",
        "deterministic=true",
        "detect_anomaly=true",
        "channels_last=false",
        "scheduler=plateau",
        "dataset.fold_split=region",
        "dataset.fold=3",
        "loss=mse",
    )
    run = train(sample_dir, tmp_path / "run", *switches)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    last = load_checkpoint(run / "checkpoints_mean_r2" / "last.pth")
    assert math.isfinite(last["metrics"]["train"]["loss"])
    assert [key for key in last["metrics"]["valid"] if key.startswith("metrics/SYD")]
    assert not [key for key in last["metrics"]["valid"] if key.startswith("metrics/SYA")]


def test_early_stopping_ends_a_run_that_does_not_improve(sample_dir: Path, tmp_path: Path) -> None:
    run = train(sample_dir, tmp_path / "run", "train.epochs=40", "train.early_stopping=1")
    folder = run / "checkpoints_mean_r2"
    last, best = load_checkpoint(folder / "last.pth"), load_checkpoint(folder / "best.pth")
    assert last["epoch"] < 40
    assert last["epoch"] == best["epoch"] + 1


def test_a_time_budget_ends_the_run_with_its_schedule_done(
    sample_dir: Path, tmp_path: Path
) -> None:
    run = train(
        sample_dir,
        tmp_path / "run",
        "train.epochs=100000",
        "train.max_minutes=0.02",
        "scheduler.min_lr=1e-5",
    )
    last = load_checkpoint(run / "checkpoints_mean_r2" / "last.pth")
    assert 1 <= last["epoch"] < 100000
    assert last["optimizer_state_dict"]["param_groups"][-1]["lr"] == pytest.approx(1e-5)


def test_checkpoint_and_transfer_start_from_weights(
    run_dir: Path, sample_dir: Path, tmp_path: Path
) -> None:
    source = run_dir / "checkpoints_mean_r2" / "best.pth"
    still = ("train.epochs=1", "optimizer.lr=1e-12", "scheduler=disabled")
    for key in ("checkpoint", "transfer", "transfer_encoder_decoder"):
        run = train(sample_dir, tmp_path / key, *still, f"{key}={source}")
        got, wanted = weights(run / "checkpoints_mean_r2" / "last.pth"), weights(source)
        name = "decoder.blocks.0.conv1.weight"
        torch.testing.assert_close(got[name], wanted[name], atol=1e-6, rtol=0)
        head = "agl_head.height.0.weight"
        same_head = torch.allclose(got[head], wanted[head], atol=1e-6)
        assert same_head == (key != "transfer_encoder_decoder")


def test_a_run_is_never_overwritten(run_dir: Path, sample_dir: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}
    same = ("train.epochs=5", "train.show=true", "seed=5")
    with pytest.raises(InputError, match="seed=5, not 42"):
        train(sample_dir, run_dir, *same[:2])
    with pytest.raises(InputError, match="already holds a run"):
        train(sample_dir, run_dir, *same, "resume=false")
    train(sample_dir, run_dir, *same)  # finished: there is nothing to do
    assert before == {p: p.read_bytes() for p in sorted(run_dir.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.data_dir=/no/such/dir", "/no/such/dir"),
        ("dataset.fold=7", "dataset.fold"),
        ("train.augmentations=soft", "soft"),
        ("train.epochs=0", r"train\.epochs=0"),
        ("optimizer.precision=half", "half"),
        ("model.encoder.name=resnet999", "resnet999"),
        ("model.encoder._target_=os.system", r"os\.system"),
        ("checkpoint=/no/such.pth", "/no/such.pth"),
        ("train.loaders.train.num_workers=-1", "num_workers"),
        ("loss.losses.agl.output_key=OUTPUT_FLOW_MASK", "OUTPUT_FLOW_MASK"),
        ("optimizer.lr=abc", r"optimizer\.lr=abc"),
        ("train.max_minutes=abc", "max_minutes"),
        ("train.mixup=some", "mixup"),
        ("optimizer.clip_grad_norm=abc", "clip_grad_norm"),
        ("runner.checkpoints=[]", "checkpoints"),
        ("runner.main_metric=foo", "foo"),
        ("scheduler.min_lr=x", r"scheduler\.min_lr"),
        ("train.show=maybe", r"train\.show=maybe: must be true or false"),
        ("seed=null", r"seed=null: must be a whole number from 0"),
        ("runner.checkpoints=[{name: a}]", r"runner\.checkpoints\[0\]\.metric is not set"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    sample_dir: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(sample_dir, tmp_path / "run", POOLED_ANGLE, override)
    assert not (tmp_path / "run").exists()


def test_an_impossible_run_directory_is_bad_input(sample_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/run"):
        train(sample_dir, tmp_path / "file" / "run")


def test_another_channel_order_is_refused(run_dir: Path, sample_dir: Path, tmp_path: Path) -> None:
    source = run_dir / "checkpoints_mean_r2" / "best.pth"
    with pytest.raises(InputError, match=r"model\.channel_order=rgb"):
        train(sample_dir, tmp_path / "run", "model.channel_order=bgr", f"transfer={source}")


def test_command_line_trains_two_processes_and_counts_each_image_once(
    sample_dir: Path, tmp_path: Path
) -> None:
    workers = [f"train.loaders.{name}.num_workers=1" for name in ("train", "valid")]
    arguments = tiny_overrides(sample_dir, tmp_path / "run", "dataset.num_folds=3", *workers)
    done = run_command_line(arguments, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2  train loss") == 1  # one line, of rank 0
    last = tmp_path / "run" / "checkpoints_mean_r2" / "last.pth"
    claimed = load_checkpoint(last)["metrics"]["valid"]["metrics/mean_r2"]
    assert score_of_checkpoint(last, sample_dir) == pytest.approx(claimed, abs=1e-4)


def test_a_file_that_only_one_process_reads_ends_both_with_its_name(
    sample_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample_dir, data)
    heights = sorted((data / "train").glob("*_AGL.tif"))[0]
    heights.write_bytes(heights.read_bytes()[:-60])
    done = run_command_line(tiny_overrides(data, tmp_path / "run"), tmp_path, processes=2)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any(heights.name in line for line in errors)


def test_an_error_of_all_processes_is_said_once(sample_dir: Path, tmp_path: Path) -> None:
    arguments = tiny_overrides(sample_dir, tmp_path / "run", "dataset.fold=99")
    done = run_command_line(arguments, tmp_path, processes=2)
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.epoch=3"], "epoch"),
        (["train=null"], "train"),
        (["model=b9"], "b9"),
        (["loss.aggregation=mean"], "error: loss.aggregation=mean: this key has gone"),
        (["+train.note=mine"], "unknown key train.note"),
        ([], "DRIVENDATA_OVERHEAD_GEOPOSE"),
    ],
)
def test_command_line_refuses_in_few_lines_with_exit_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run_command_line(arguments, tmp_path)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


def test_arguments_of_old_are_accepted(sample_dir: Path, tmp_path: Path) -> None:
    old = ["--local-rank=0", "loss.aggregation=sum"]
    arguments = [*old, *tiny_overrides(sample_dir, tmp_path / "run", "train.epochs=1")]
    done = run_command_line(arguments, tmp_path, DRIVENDATA_OVERHEAD_GEOPOSE=str(sample_dir))
    assert done.returncode == 0, done.stderr
    last = load_checkpoint(tmp_path / "run" / "checkpoints_mean_r2" / "last.pth")
    assert last["checkpoint_data"]["config"]["dataset"]["data_dir"] == str(sample_dir)


def test_a_sweep_trains_each_in_its_own_directory(sample_dir: Path, tmp_path: Path) -> None:
    arguments = [a for a in tiny_overrides(sample_dir, tmp_path) if not a.startswith("experiment=")]
    done = run_command_line(["-m", *arguments, "train.epochs=1", "seed=1,2"], tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs").iterdir())
    seeds = [
        load_checkpoint(run / "checkpoints_mean_r2" / "last.pth")["checkpoint_data"]["config"][
            "seed"
        ]
        for run in runs
    ]
    assert sorted(seeds) == [1, 2]


def launch(
    folder: Path, arguments: list[str], rank: int, trap: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Trains in two processes under torchrun in `folder`.

    Args:
        folder: working directory.
        arguments: of train.py.
        rank: which process falls into the trap, the first time that the launcher starts it.
        trap: Python that runs when it starts its second epoch.
        options: of torchrun.
    """
    script = folder / "trapped.py"
    script.write_text(
        "import os, signal\n"
        "from geopose.commands import train\n"
        f"if os.environ['RANK'] == '{rank}' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    from geopose.training.callbacks.score import ScoreCallback\n"
        "    def trap(self, runner):\n"
        "        if runner.epoch_step == 2:\n"
        f"{textwrap.indent(trap, ' ' * 12)}\n"
        "    ScoreCallback.on_epoch_start = trap\n"
        "train()\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    return run_script(*launcher, script, *arguments, cwd=folder)


def test_a_launcher_restarts_a_killed_process_which_goes_on(
    sample_dir: Path, tmp_path: Path
) -> None:
    """No experiment is named: the restarted processes find their run by themselves."""
    arguments = [a for a in tiny_overrides(sample_dir, tmp_path) if not a.startswith("experiment=")]
    trap = "os.kill(os.getpid(), signal.SIGKILL)"
    done = launch(tmp_path, arguments, 1, trap, "--max-restarts=1")
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 1" in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert load_checkpoint(run / "checkpoints_mean_r2" / "last.pth")["epoch"] == 2


def test_a_signal_to_the_launcher_saves_and_the_same_command_goes_on(
    sample_dir: Path, tmp_path: Path
) -> None:
    """As a cluster ends a job: SIGTERM for torchrun, whose processes save what they have done."""
    run = tmp_path / "run"
    arguments = tiny_overrides(sample_dir, run, "train.save_every_minutes=null")
    last = run / "checkpoints_mean_r2" / "last.pth"
    trap = "os.kill(os.getppid(), signal.SIGTERM)\nwhile not runner._signals.number: pass"
    ended = launch(tmp_path, arguments, 0, trap)
    assert ended.returncode != 0
    assert "stopped by signal 15 with everything saved" in ended.stderr
    state = load_checkpoint(last)["resume"]
    assert (state["epoch"], state["batch"]) == (1, 1)
    again = launch(tmp_path, arguments, 0, "pass")
    assert again.returncode == 0, again.stderr
    assert "resumed after epoch 1, batch 1" in again.stderr
    assert load_checkpoint(last)["resume"]["epoch"] == 2


class _EnoughError(Exception):
    pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="a training would use the GPU")
def test_a_training_on_a_cpu_is_set_up_for_it(
    sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(parts: RunParts, signals: StopSignal) -> None:
        seen.append(parts)
        raise _EnoughError

    monkeypatch.setattr(fit_module, "keep_freed_memory", lambda: seen.append("kept"))
    monkeypatch.setattr(fit_module, "_run", look)
    with pytest.raises(_EnoughError):
        train(sample_dir, tmp_path / "run", "optimizer.precision=bf16", "train.ema=0.9")
    kept, parts = seen
    assert kept == "kept"
    for network in (parts.model, parts.ema.module):
        kinds = {type(module).__name__ for module in network.modules()}
        assert any(kind.startswith("Float32") for kind in kinds)
    assert parts.optimizer.param_groups[0]["fused"] is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="a training would use the GPU")
def test_workers_do_not_take_over_freed_memory(
    sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    started = DataLoader.__iter__

    def start(self: DataLoader) -> Any:
        calls.append("started" if self.num_workers else "read")
        return started(self)

    monkeypatch.setattr(DataLoader, "__iter__", start)
    monkeypatch.setattr(runner_module, "release_freed_memory", lambda: calls.append("released"))
    train(sample_dir, tmp_path / "run", "train.epochs=1", "train.loaders.valid.num_workers=1")
    assert calls == ["read", "released", "started"]
