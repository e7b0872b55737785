"""Training steps: gradients that do not depend on how images are spread, numbers that fail."""

import csv
import math
import os
import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.layers import create_conv2d
from torch import Tensor, nn

from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.checkpoints.load import load_model
from geopose.data.heights import read_agl_m, write_agl_cm
from geopose.errors import RunError
from geopose.models.heads import BasicOrientationScaleHead
from geopose.training.callbacks import step
from geopose.training.callbacks.step import OptimizerCallback
from geopose.training.precision import Precision, resolve_precision
from geopose.training.sync_bn import BatchNormAct2d, synchronise_batchnorm
from tests.forked_run import fork, run_forked
from tests.tiny_networks import network
from tests.training_run import score_of, tiny_overrides, train

FOLDER = "checkpoints_mean_r2"
# Without dropout, which draws other masks on other processes.
PLAIN = (
    "train.epochs=1",
    "optimizer=sgd",
    "optimizer.precision=fp32",
    "optimizer.lr=1e-3",
    "scheduler=disabled",
    "train.augmentations=none",
)


def _keep_gradients(folder: Path) -> Callable[[int], None]:
    """A trap that writes the gradient of the first update to a file and ends the process."""

    def prepare(rank: int) -> None:
        def update(self: OptimizerCallback, runner: Any) -> None:
            del self
            parameters = runner.network.named_parameters()
            gradients = {n: p.grad.clone() for n, p in parameters if p.grad is not None}
            torch.save(gradients, folder / f"{rank}.pt")
            os._exit(0)

        OptimizerCallback._update = update  # type: ignore[method-assign]

    return prepare


def _gradients(
    data: Path, folder: Path, processes: int, *more: str, norms: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Those of the first update; with `norms`, BatchNorm uses its running statistics."""
    folder.mkdir()
    keep = _keep_gradients(folder)

    def prepare(rank: int) -> None:
        keep(rank)
        if norms:
            nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)  # type: ignore[assignment, method-assign]

    run_forked(tiny_overrides(data, folder / "run", *PLAIN, *more), prepare, processes)
    return torch.load(folder / "0.pt")


@pytest.fixture(scope="module")
def holed_dir(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample city with more and more unknown heights from image to image."""
    folder = tmp_path_factory.mktemp("holes") / "data"
    shutil.copytree(sample_dir, folder)
    for number, path in enumerate(sorted((folder / "train").glob("*_AGL.tif"))):
        agl_m = read_agl_m(path)
        agl_m[: 8 * number] = np.nan
        write_agl_cm(path, agl_m, allow_nodata=True)
    return folder


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (2, ("batch_size=2", "sync_bn=true", "loss=huber_trimmed_cos")),
        (1, ("batch_size=1", "optimizer.accumulation=4", "loss=huber_trimmed_cos")),
        (2, ("batch_size=1", "optimizer.accumulation=2", "loss=huber_cos")),
    ],
    ids=["two processes", "accumulation", "both"],
)
def test_gradients_are_those_of_one_process_with_one_batch(
    holed_dir: Path, tmp_path: Path, processes: int, more: tuple[str, ...]
) -> None:
    """Images have holes of different size: a mean of the batches' means would differ."""
    norms = () if "sync_bn=true" in more else ("fixed norms",)
    one = _gradients(holed_dir, tmp_path / "one", 1, "batch_size=4", more[-1], norms=norms)
    other = _gradients(holed_dir, tmp_path / "other", processes, *more, norms=norms)
    assert one.keys() == other.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(
            other[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=lambda m, n=name: f"{n} {m}"
        )


def test_synchronised_norm_is_the_norm_of_all_samples_together(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics, of both kinds of BatchNorm that networks have."""
    torch.manual_seed(0)
    inputs = torch.randn(5, 3, 4, 4) * 3 + 1  # shards of different size

    def network() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), BatchNormAct2d(3), nn.Conv2d(3, 2, 1)
        )

    def passed(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        (model(batch).square()).sum().backward()
        gradients = {f"grad {n}": p.grad for n, p in model.named_parameters()}
        return {**model.state_dict(), **gradients}  # type: ignore[dict-item]

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        model = synchronise_batchnorm(network(), torch.device("cpu"))
        result = passed(model, inputs[[slice(0, 2), slice(2, 5)][rank]])
        for name, value in result.items():
            if name.startswith("grad"):
                dist.all_reduce(value)
        if rank == 0:
            torch.save(result, tmp_path / "result.pt")

    assert fork(work, 2) == [0, 0]
    wanted, got = passed(network(), inputs), torch.load(tmp_path / "result.pt")
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)


def _spoil(calls: set[int], what: str) -> Callable[[int], None]:
    """A trap: the n-th training loss (or gradient) of rank 1 (or the only one) is no number."""

    def prepare(rank: int) -> None:
        if rank != int(os.environ.get("WORLD_SIZE", "1")) - 1:
            return
        original, count = step.mixed_loss, [0]

        def spoiled(criterion: Any, batch: Any) -> dict[str, Tensor]:
            losses = original(criterion, batch)
            if torch.is_grad_enabled():
                count[0] += 1
                if count[0] in calls and what == "loss":
                    losses = {name: value * math.nan for name, value in losses.items()}
                elif count[0] in calls:
                    for value in losses.values():
                        value.register_hook(lambda gradient: gradient * math.inf)
            return losses

        step.mixed_loss = spoiled  # type: ignore[assignment]

    return prepare


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_no_number_is_skipped_on_all_ranks_and_counted(
    sample_dir: Path, tmp_path: Path, what: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = tiny_overrides(sample_dir, run, "batch_size=1", "train.epochs=1")
    assert run_forked(arguments, _spoil({2}, what), 2, log) == [0, 0], log.read_text()
    last = load_checkpoint(run / FOLDER / "last.pth")
    assert all(torch.isfinite(w).all() for w in last["model_state_dict"].values())
    assert last["metrics"]["_epoch_"]["skipped_steps"] == 1
    assert math.isfinite(last["metrics"]["train"]["loss"])
    assert last["resume"]["updates"] == 3
    with (run / "skipped_steps.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["epoch"], row["step"]) == ("1", "2")
    assert len(row["images"].split()) == 2  # of both ranks
    assert "1 steps skipped" in log.read_text()


@pytest.mark.parametrize(("precision", "what"), [("fp16", "gradient"), ("fp32", "loss")])
def test_the_schedule_goes_past_a_skipped_first_update(
    sample_dir: Path, tmp_path: Path, precision: str, what: str
) -> None:
    """No rate is lost to the updates that follow: theirs are those of a run that skips nothing."""
    log, rates = tmp_path / "log", tmp_path / "rates"
    more = ("scheduler=flat_cos", "scheduler.flat=0", "batch_size=1", "train.epochs=1")
    arguments = tiny_overrides(
        sample_dir, tmp_path / "run", *more, f"optimizer.precision={precision}"
    )

    def prepare(rank: int) -> None:
        _spoil({1}, what)(rank)
        warnings.simplefilter("error", UserWarning)
        update = OptimizerCallback._update

        def noted(self: OptimizerCallback, runner: Any) -> None:
            with rates.open("a") as file:
                file.write(f"{runner.optimizer.param_groups[0]['lr']}\n")
            update(self, runner)

        OptimizerCallback._update = noted  # type: ignore[method-assign]

    assert run_forked(arguments, prepare, log=log) == [0], log.read_text()
    used = [float(rate) for rate in rates.read_text().split()]
    share = [number / len(used) for number in range(len(used))]
    low, high = 5e-6, 1e-3
    wanted = [low + (high - low) * 0.5 * (1 + math.cos(math.pi * done)) for done in share]
    assert used == pytest.approx(wanted)
    assert "step 1 skipped" in log.read_text()
    state = load_checkpoint(tmp_path / "run" / FOLDER / "last.pth")
    assert state["optimizer_state_dict"]["param_groups"][0]["lr"] == pytest.approx(low)


def test_too_many_bad_steps_end_the_run_with_their_images(sample_dir: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = tiny_overrides(sample_dir, run, "batch_size=1", "train.epochs=2")
    assert run_forked(arguments, _spoil({2, 5, 7}, "loss"), 1, log) == [1]
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "2 of 5 steps of epoch 1" in errors[0]
    assert str(run / "skipped_steps.csv") in errors[0]
    ids = {row["id"] for row in csv.DictReader((sample_dir / "geopose_train.csv").open())}
    rows = list(csv.DictReader((run / "skipped_steps.csv").open()))
    assert len(rows) == 2
    assert {row["images"] for row in rows} <= ids


def test_a_rate_that_destroys_the_weights_ends_the_run(sample_dir: Path, tmp_path: Path) -> None:
    more = ("optimizer=sgd", "scheduler=disabled", "batch_size=1")
    with pytest.raises(RunError, match=r"optimizer\.lr"):
        train(sample_dir, tmp_path / "run", *more, "optimizer.lr=1e30", "optimizer.precision=fp32")


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("tf32", "optimizer.precision=tf32"),
        ("bf16", "optimizer.precision=bf16"),
        ("fp16", "optimizer.fp16=true"),  # as old configs spell it; below as today's do
    ],
    ids=["tf32", "bf16", "fp16"],
)
def test_every_precision_trains_and_keeps_float32_weights(
    sample_dir: Path, tmp_path: Path, precision: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = train(sample_dir, tmp_path / "run", "train.epochs=1", words)
    last = load_checkpoint(run / FOLDER / "last.pth")
    assert {w.dtype for w in last["model_state_dict"].values()} <= {torch.float32, torch.int64}
    assert math.isfinite(last["metrics"]["train"]["loss"])
    assert ("scale" in last["scaler_state_dict"]) == (precision == "fp16")
    assert precision != "fp16" or last["scaler_state_dict"]["scale"] > 0
    said = f"optimizer.precision={precision}: " in caplog.text
    assert said == (precision != "bf16")  # what a CPU makes of it


def test_an_overflow_of_fp16_lowers_the_scale_and_is_no_fault(
    sample_dir: Path, tmp_path: Path
) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    arguments = tiny_overrides(
        sample_dir, run, "optimizer.precision=fp16", "batch_size=1", "train.epochs=1"
    )
    spoil = _spoil({1, 3, 4, 6}, "gradient")
    assert run_forked(arguments, spoil, log=log) == [0], log.read_text()
    last = load_checkpoint(run / FOLDER / "last.pth")
    skipped = last["metrics"]["_epoch_"]["skipped_steps"]  # those and what overflows by itself
    assert skipped >= 4
    assert last["scaler_state_dict"]["scale"] == 2.0**16 / 2**skipped


def test_amp_means_what_the_device_computes_in() -> None:
    assert resolve_precision("amp", torch.device("cpu")) in ("bf16", "fp32")
    assert Precision("fp32", torch.device("cpu")).scaler.is_enabled() is False


def test_bf16_on_a_cpu_leaves_slow_depthwise_convolutions_in_float32() -> None:
    torch.manual_seed(0)
    strided = create_conv2d(4, 4, 3, stride=2, padding="same", depthwise=True)
    network = nn.Sequential(strided, nn.Conv2d(4, 4, 5, groups=4), nn.Conv2d(4, 2, 5))
    x = torch.randn(2, 4, 24, 23)
    names = list(network.state_dict())
    wanted = strided(x)
    wanted.sum().backward()
    gradient, strided.weight.grad = strided.weight.grad, None

    Precision("fp32", torch.device("cpu")).adapt(network)
    assert type(network[1]) is nn.Conv2d
    precision = Precision("bf16", torch.device("cpu"))
    precision.adapt(network)
    copy = deepcopy(network)
    assert list(copy.state_dict()) == names
    with precision.autocast():
        maps = copy[0](x)
        assert torch.equal(maps, wanted)  # to the last bit: nothing was rounded to bf16
        assert copy[1](x.bfloat16()).dtype == torch.bfloat16
        assert copy(x).dtype == torch.bfloat16
    maps.sum().backward()
    assert torch.equal(copy[0].weight.grad, gradient)


@pytest.mark.parametrize("name", ["published b6", "published b7", "hyper column"])
def test_heights_are_not_rounded_to_16_bits_in_training(name: str) -> None:
    model = network(name).train()
    precision = Precision("bf16", torch.device("cpu"))
    names = list(model.state_dict())
    precision.adapt(model)
    assert list(model.state_dict()) == names
    with precision.autocast():
        output = model(torch.randn(2, 3, 64, 64), torch.tensor([[0.3], [0.5]]))
    heights = output["OUTPUT_AGL_MASK"]
    steps = heights[heights > 0]
    assert len(steps)
    assert not torch.equal(steps, steps.bfloat16().float())
    heights.sum().backward()
    last = [p for n, p in model.agl_head.named_parameters() if n.startswith("height")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in last)


def test_the_scale_head_computes_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = BasicOrientationScaleHead([4, 8], num_layers=0, dropout_rate=0.0)
    maps = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
    wanted = head(maps).scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scale = head(maps).scale
    assert scale is not None
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale, wanted, rtol=1e-6, atol=0)


def test_the_average_of_the_weights_is_validated_and_saved(
    sample_dir: Path, tmp_path: Path
) -> None:
    run = train(sample_dir, tmp_path / "run", "train.ema=0.5", "train.epochs=3")
    last = load_checkpoint(run / FOLDER / "last.pth")
    best = load_checkpoint(run / f"{FOLDER}_ema" / "best.pth")
    raw, average = last["model_state_dict"], last["ema_state_dict"]
    assert raw.keys() == average.keys()
    assert not all(torch.equal(raw[name], average[name]) for name in raw)
    claimed = best["metrics"]["valid_ema"]["metrics/mean_r2"]
    model = load_model(run / f"{FOLDER}_ema" / "best.pth").model
    assert score_of(model, sample_dir)["score"] == pytest.approx(claimed, abs=1e-4)
    assert claimed != best["metrics"]["valid"]["metrics/mean_r2"]


def test_a_frozen_encoder_stays_as_it_is(sample_dir: Path, tmp_path: Path) -> None:
    source = train(sample_dir, tmp_path / "source", "train.epochs=1")
    best = source / FOLDER / "best.pth"
    more = ("train.epochs=1", f"checkpoint={best}", "freeze_encoder=true")
    run = train(sample_dir, tmp_path / "run", *more)
    before = load_checkpoint(best)["model_state_dict"]
    after = load_checkpoint(run / FOLDER / "last.pth")["model_state_dict"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if name.startswith("encoder.")]
