"""Steps of the check that train: every precision, stopping and going on, layouts, NCCL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from benchmarks.gpu_check.common import count_waits, image, network, seconds
from benchmarks.gpu_check.rows import ROOT, Job, Row
from geopose import distributed
from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.convert import convert_directory
from geopose.sample_city.writer import write_dataset
from geopose.system.devices import allow_tf32
from geopose.training.callbacks.score_sums import image_sums, truth_of
from geopose.training.fit import fit
from geopose.training.precision import Precision
from geopose.training.runner import GeoposeRunner

_FEATURES = (
    "optimizer.accumulation=2", "optimizer.clip_grad_norm=1", "train.ema=0.99", "train.epochs=1",
    "dataset.num_folds=2", "train.show=false", "optimizer=adamw", "scheduler=cos",
)  # fmt: skip


def _data(job: Job) -> Path:
    folder = job.folder.parent / f"city_{job.side}"
    if not folder.exists():
        write_dataset(folder, train=4, test=1, size=job.side, seed=3)
        convert_directory(folder, workers=1, progress=False)
    return folder


def _arguments(job: Job, run: Path, *more: str) -> list[str]:
    workers = [f"train.loaders.{part}.num_workers={job.workers}" for part in ("train", "valid")]
    files = [f"dataset.data_dir={_data(job)}", f"experiment={run}"]
    return [*job.train, *_FEATURES, *workers, *files, *more]


def _fitted(job: Job, run: Path, *more: str) -> dict[str, Any]:
    """The content of last.pth after a training in this process."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("config", _arguments(job, run, *more))
    fit(config)
    return load_checkpoint(run / "checkpoints_mean_r2/last.pth")


def training(job: Job) -> list[Row]:
    """Updates in each precision; fp16 that overflows; a signal and a resume."""
    rows = [_in_precision(job, precision) for precision in job.precisions]
    if job.on_gpu:
        rows += [_overflowing(job), _stopped(job)]
    return rows


def _in_precision(job: Job, precision: str) -> Row:
    handled = GeoposeRunner.after_update
    marks: list[int] = []
    with count_waits(job.device) as waits:

        def count(runner: GeoposeRunner) -> None:
            handled(runner)
            marks.append(waits.count)

        GeoposeRunner.after_update = count  # type: ignore[method-assign]
        try:
            last = _fitted(job, job.folder / precision, f"optimizer.precision={precision}")
        finally:
            GeoposeRunner.after_update = handled  # type: ignore[method-assign]
    loss = last["metrics"]["train"]["loss"]
    steady = marks[len(marks) // 2 :]
    each = (steady[-1] - steady[0]) / max(1, len(steady) - 1)
    # One to learn whether the update is good; fp16's scaler asks again. The bar adds one a second.
    allowed = 3.0 if precision == "fp16" else 2.0
    speed = last["metrics"]["_epoch_"]["images_per_s"]
    value = f"loss {loss:.3g}, {speed:.1f} images/s, {each:.1f} waits an update"
    good = loss == loss and len(marks) > 0 and each <= allowed
    return Row(f"{len(marks)} updates in {precision}", value, good)


def _overflowing(job: Job) -> Row:
    scaler, scale = torch.amp.GradScaler, 2.0**40

    def hot(*arguments: Any, **more: Any) -> torch.amp.GradScaler:
        return scaler(*arguments, init_scale=scale, **more)

    torch.amp.GradScaler = hot  # type: ignore[assignment, misc]
    try:
        last = _fitted(job, job.folder / "overflow", "optimizer.precision=fp16", "train.epochs=3")
    finally:
        torch.amp.GradScaler = scaler  # type: ignore[misc]
    lowered = last["scaler_state_dict"]["scale"] < scale
    loss = last["metrics"]["train"]["loss"]
    value = f"scale {last['scaler_state_dict']['scale']:.3g}, loss {loss:.3g}"
    return Row("fp16 that overflows is skipped and recovers", value, lowered and loss == loss)


def _stopped(job: Job) -> Row:
    run = job.folder / "stopped"
    command = [sys.executable, "train.py", *_arguments(job, run, "train.epochs=40")]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (run / "metrics.csv").exists() and first.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    first.communicate()
    command[-1] = "train.epochs=2"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    codes = first.returncode, again.returncode
    good = codes[0] == 128 + signal.SIGTERM and codes[1] == 0
    return Row("stopped by SIGTERM, then resumed", f"exit codes {codes[0]} and {codes[1]}", good)


def layouts(job: Job) -> list[Row]:
    """A step of b7 at 768 px by layout, search for kernels and precision; validating an image."""
    rows, name = [], job.networks[-1]
    for precision in ("fp32", "tf32", "bf16"):
        for layout in (torch.contiguous_format, torch.channels_last):
            for benchmark in (False, True):
                torch.backends.cudnn.benchmark = benchmark
                took = _step_s(job, name, precision, layout)
                what = f"{name} 768 px, {precision}, {str(layout).removeprefix('torch.')}"
                rows.append(Row(f"{what}, benchmark {benchmark}", f"{took:.3f} s a step of 2"))
    return [*rows, _validation(job, name)]


def _step_s(job: Job, name: str, precision: str, layout: torch.memory_format) -> float:
    number_format = Precision(precision, job.device)
    model = network(name).to(job.device).to(memory_format=layout).train()  # type: ignore[call-overload]
    number_format.adapt(model)
    shown = torch.randn(2, 3, 768, 768, device=job.device).contiguous(memory_format=layout)
    gsd_m = torch.full((2, 1), 0.5, device=job.device)

    def step() -> None:
        with number_format.autocast():
            output = model(shown, gsd_m)
        output["OUTPUT_AGL_MASK"].mean().backward()
        model.zero_grad()

    return seconds(step, job.device)


def _validation(job: Job, name: str) -> Row:
    model = network(name).to(job.device)
    allow_tf32(True)
    pixels, gsd_m = image((2048, 2048), job.device)
    shown = pixels.float() / 255
    true = torch.rand(1, 2048, 2048, device=job.device)
    one = torch.full((1,), 0.5, device=job.device)
    with torch.inference_mode():
        forward_s = seconds(lambda: model(shown, gsd_m), job.device)
        score_s = seconds(lambda: image_sums([true, one, one], [true, one, one], truth_of(true)),
                          job.device)  # fmt: skip
    value = f"network {forward_s:.3f} s (tf32), sums of the score {score_s:.4f} s"
    return Row("validation of an image of 2048 px", value)


def one_nccl_rank(job: Job) -> list[Row]:
    """One process under NCCL with all that several would do switched on."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    asked = distributed.is_distributed
    for module in list(sys.modules.values()):
        if getattr(module, "is_distributed", None) is asked:
            module.is_distributed = lambda: True  # type: ignore[attr-defined]
    last = _fitted(job, job.folder / "nccl", "sync_bn=true", "train.max_minutes=5")
    loss = last["metrics"]["train"]["loss"]
    return [Row("one NCCL rank, everything distributed", f"loss {loss:.3g}", loss == loss)]


def two_on_one_gpu(job: Job) -> list[Row]:
    """Two processes that see one GPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, "train.py", *_arguments(job, job.folder / "two")], cwd=ROOT, text=True,
        capture_output=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"}, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    good = done.returncode != 0 and len(said) == 1 and "are on one GPU" in said[0]
    return [Row("two processes on one GPU", said[0][:90] if said else "nothing said", good)]
