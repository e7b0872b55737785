"""Steps of the check that predict: numbers, memory, waits, speed."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.common import (
    checkpoint,
    count_waits,
    ensemble,
    image,
    network,
    seconds,
)
from benchmarks.gpu_check.rows import ROOT, Job, Row
from benchmarks.scaling import make_data
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.data.heights import read_agl_cm
from geopose.errors import RunError
from geopose.inference.pipeline.device_copy import DeviceCopy
from geopose.inference.pipeline.pipeline import predict
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Prediction
from geopose.inference.submission.command import submit
from geopose.output.writer import to_centimetres
from geopose.system.devices import allow_tf32, use_device

LARGE = 2048
MEMBERS = 9
# Largest difference of a height from float32 on the CPU, metres, by the digits of each format.
_TOLERANCE_M = {"fp32": 0.01, "tf32": 0.5, "bf16": 4.0, "fp16": 0.5}
GiB = 2**30


def versions(job: Job) -> list[Row]:
    """What ran, and how it was set."""
    rows = [Row("torch", torch.__version__), Row("CUDA, cuDNN", _libraries())]
    if job.on_gpu:
        gpu = torch.cuda.get_device_properties(job.device)
        memory = gpu.total_memory / GiB
        rows.append(Row("GPU", f"{gpu.name}, {gpu.major}.{gpu.minor}, {memory:.0f} GiB"))
        flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        rows.append(Row("TF32 at the start: convolutions, products", f"{flags[0]}, {flags[1]}"))
        rows.append(Row("native bf16", str(torch.cuda.is_bf16_supported(False))))
    return rows


def _libraries() -> str:
    return f"{torch.version.cuda}, {torch.backends.cudnn.version()}"


def numbers(job: Job) -> list[Row]:
    """Each precision on the device against float32 on the CPU; D4 in batches against singly."""
    rows, cpu = [], torch.device("cpu")
    for name in job.networks:
        for size in job.sizes:
            with torch.inference_mode():
                expected = ensemble(name, "fp32", cpu)(*image(size, cpu))
                for precision in job.precisions:
                    found = ensemble(name, precision, job.device)(*image(size, job.device))
                    what = f"{name} {size[1]} x {size[0]}, {precision} against the CPU"
                    rows.append(_compared(what, found, expected, _TOLERANCE_M[precision]))
        rows.append(_batches(job, name))
    return rows


def _compared(what: str, found: Prediction, expected: Prediction, allowed_m: float) -> Row:
    heights = (found.agl_m.cpu() - expected.agl_m).abs()
    angle = (found.angle_rad.cpu() - expected.angle_rad + np.pi) % (2 * np.pi) - np.pi
    scale = found.scale_px_per_m.cpu() / expected.scale_px_per_m - 1
    value = (
        f"heights differ by {100 * heights.max():.2g} cm at most, {100 * heights.mean():.2g} on "
        f"average; angle {angle.abs().max():.1g} rad, scale {100 * scale.abs().max():.1g} %"
    )
    return Row(what, value, bool(heights.max() <= allowed_m))  # False for NaN


def _batches(job: Job, name: str) -> Row:
    with torch.inference_mode():
        made = ensemble(name, "fp32", job.device, "d4")
        found = []
        for limit in (1, 4):
            made._batches[0]._limits = {torch.Size(size): limit for size in _turned(job.sizes[0])}
            found.append(made(*image(job.sizes[0], job.device)))
        one, four = found
    return _compared(f"{name} D4 by four against one by one", four, one.map(torch.Tensor.cpu), 0.01)


def _turned(size: tuple[int, int]) -> list[tuple[int, int]]:
    return [size, size[::-1]]


def submission(job: Job) -> list[Row]:
    """submit.py against itself on the CPU; waits and memory after a few images and after many."""
    few, many = job.images
    data = job.folder / "data"
    if not data.exists():
        make_data(data, many, job.side)
    model = checkpoint(job.folder / "model.pth", job.networks[-1])
    config = job.folder / "config.yaml"
    inference = {"precision": "fp32", "num_workers": job.workers, "backend": "torch"}
    settings: dict[str, Any] = {"ensemble": {"models": [str(model)]}, "inference": inference}
    config.write_text(json.dumps({**settings, "submission_dir": str(job.folder / "here")}))
    marks = _submitted(job, [str(config), "--data-dir", str(data), "--force"], (few, many))
    cpu = job.folder / "cpu"
    _submit_on_cpu(job, [str(config), f"submission_dir={cpu}", "--data-dir", str(data), "--force"])
    files = sorted((cpu / "submission").glob("*_AGL.tif"))
    here = job.folder / "here/submission"
    differing = max(_difference_cm(file, here / file.name) for file in files)
    (waits_few, memory_few), (waits_many, memory_many) = marks
    each = (waits_many - waits_few) / (many - few)
    return [
        Row(f"submit.py, {len(files)} images against the CPU", f"{differing} cm at most",
            len(files) == many and differing <= 1),
        Row("waits of the host for the device", f"{each:.2f} an image", each == 0),
        Row(f"memory after {few} and {many} images", f"{memory_few}, {memory_many} bytes",
            memory_few == memory_many),
    ]  # fmt: skip


def _difference_cm(file: Path, other: Path) -> int:
    heights = (read_agl_cm(path).astype(int) for path in (file, other))
    return int(np.abs(np.subtract(*heights)).max())


def _submitted(job: Job, arguments: Sequence[str], marks: tuple[int, ...]) -> list[tuple[int, int]]:
    """Runs submit.py here; (waits, memory) when images of these numbers begin to be predicted."""
    found: dict[int, tuple[int, int]] = {}
    forward, begun = PoseEnsemble.forward, 0
    with count_waits(job.device) as waits:

        def watched(self: PoseEnsemble, *inputs: Any, **more: Any) -> Prediction:
            nonlocal begun
            begun += 1
            memory = torch.cuda.memory_allocated() if job.on_gpu else 0
            found[begun] = waits.count, memory
            return forward(self, *inputs, **more)

        PoseEnsemble.forward = watched  # type: ignore[method-assign]
        try:
            submit(arguments)
        finally:
            PoseEnsemble.forward = forward  # type: ignore[method-assign]
    for place, count in sorted(waits.places.items(), key=lambda item: -item[1])[:5]:
        print(f"  waited {count} times in {place}", file=sys.stderr)
    return [found[mark] for mark in marks]


def _submit_on_cpu(job: Job, arguments: Sequence[str]) -> None:
    if not job.on_gpu:
        submit(arguments)
        return
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "submit.py"), *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def memory(job: Job) -> list[Row]:
    """Nine networks while something else holds most of the GPU: equal results, or one line."""
    use_device(job.device)
    copy, rows = DeviceCopy(job.device), []
    pixels = image((LARGE, LARGE), torch.device("cpu"))[0][0].permute(1, 2, 0).numpy().copy()
    expected: np.ndarray | None = None
    for free_gib in (None, 16, 5, 1):
        ballast = None if free_gib is None else _ballast(job.device, free_gib)
        text = "alone" if free_gib is None else f"with {free_gib} GiB free"
        try:
            with torch.inference_mode():
                made = ensemble(job.networks[-1], "tf32", job.device, "d4", MEMBERS)
                heights = predict(made, copy, [pixels], [0.5], _centimetres)()[0].numpy()
            waiting = ", networks waited on the host" if made._offload.waiting else ""
            off = 0 if expected is None else int(np.abs(heights - expected).max())
            expected = heights if expected is None else expected
            rows.append(Row(f"nine networks, D4, {text}", f"{off} cm{waiting}", off <= 10))
        except RunError as error:
            good = free_gib is not None and free_gib <= 5
            rows.append(Row(f"nine networks, D4, {text}", str(error)[:80], good))
        made = None  # type: ignore[assignment]
        del ballast
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def _centimetres(prediction: Prediction, _: torch.Tensor | None) -> list[torch.Tensor]:
    """Heights as a submission holds them; see `Outputs.fields`."""
    return [to_centimetres(prediction.agl_m).agl_cm]


def _ballast(device: torch.device, free_gib: int) -> torch.Tensor:
    free, _ = torch.cuda.mem_get_info(device)
    size = max(0, free - free_gib * GiB)
    return torch.empty(size, dtype=torch.uint8, device=device)


def compiled(job: Job) -> list[Row]:
    """torch.compile against the network as loaded: seconds of an image, and of compiling."""
    rows, name, shown = [], job.networks[-1], image((1024, 1024), job.device)
    for precision in ("tf32", "bf16"):
        took = []
        for backend in ("torch", "compile"):
            with torch.inference_mode():
                made = ensemble(name, precision, job.device, backend=backend)
                started = time.perf_counter()
                made(*shown).scale_px_per_m.cpu()
                first_s = time.perf_counter() - started
                took.append(seconds(lambda m=made: m(*shown), job.device))  # type: ignore[misc]
        value = f"{took[0]:.4f} s as loaded, {took[1]:.4f} s compiled, in {first_s:.0f} s"
        rows.append(Row(f"{name} 1024 px, {precision}", value))
    return rows


def speed(job: Job) -> list[Row]:
    """Seconds of an image of the nine-network D4 ensemble, against the plain loop."""
    rows, shown = [], image((LARGE, LARGE), job.device)
    name = job.networks[-1]
    with torch.inference_mode():
        allow_tf32(False)
        torch.backends.cudnn.benchmark = False
        plain = Member(LoadedModel(network(name), {}, "rgb", 1, False, name)).to(job.device)
        plain_s = 8 * MEMBERS * seconds(lambda: plain(*shown), job.device)
        rows.append(Row("plain loop, fp32 (72 times one view)", f"{plain_s:.2f} s an image"))
        for precision, factor in (("tf32", 5), ("bf16", 10), ("fp16", 10)):
            made = ensemble(name, precision, job.device, "d4", MEMBERS)
            took = seconds(lambda m=made: m(*shown), job.device, 1)  # type: ignore[misc]
            value = f"{took:.2f} s an image, {plain_s / took:.1f} times the plain loop"
            good = took * factor <= plain_s
            if "H200" in torch.cuda.get_device_name(job.device) and precision == "bf16":
                good = good and took <= 1.0
            rows.append(Row(f"nine {name}, D4, {LARGE} px, {precision}", value, good))
            del made
    return rows
