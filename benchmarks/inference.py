"""Inference against the plain loop: seconds per image, memory, differences, share of the peak.

    python -m benchmarks.inference [--models b7_unet b6_rdtsc_unet] [--size 2048] [--images 1]
        [--tta null d4] [--cases torch:fp32 openvino:fp32] [--repeats 3] [--checkpoint FILE]

The plain loop reads an image, shows it to the network as loaded (fp32, contiguous, one view at a
time), writes the files, and goes on to the next. Each case is a whole run of submit.py on the
same images; seconds count from the first image to the last file, compiling included where a case
does it, loading of models (and their conversion, where a backend wants one) not. All take turns,
each in a process of its own; the median of the repeats counts. Without --checkpoint the networks
have random weights, whose last layers are set so that heights spread around 20 m. Differences are
those of the written files; R2 takes the plain loop's heights for the truth. The peak is what large
convolutions reach here in the same precision.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.models import count, shipped_model
from benchmarks.scaling import make_checkpoint, make_data
from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.checkpoints.load import load_model
from geopose.data.heights import read_agl_cm
from geopose.data.layouts.splits import read_split
from geopose.data.rgb import read_rgb
from geopose.distributed import local_device
from geopose.inference.engines.openvino_engine import has_openvino
from geopose.inference.predict.ensemble import Member
from geopose.inference.predict.tta import Tta
from geopose.output.writer import to_centimetres, write_prediction
from geopose.system.devices import allow_tf32, has_native_bf16

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "plain loop"
INT8 = "int8"  # a backend here: the quantised file, run by OpenVINO
MEMORY = "memory in bytes: "
_SUBMIT = f"""
import resource, sys, torch
from geopose.cli import run_command
from geopose.inference.submission.command import submit
code = run_command(submit)
gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
print("{MEMORY}", gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


@dataclass
class Case:
    """One row of the table and its measurements."""

    name: str
    backend: str
    precision: str
    tta: str
    out: Path
    seconds: list[float] = field(default_factory=list)
    peak_bytes: float = 0.0


def calibrated_checkpoint(path: Path, name: str) -> Path:
    """Random weights whose heights and magnitudes have mean 20 and standard deviation 10."""
    payload = load_checkpoint(make_checkpoint(path, name))
    model = load_model(path).model
    head: nn.Module = model.agl_head  # type: ignore[assignment]
    branches = [getattr(head, part) for part in ("height", "magnitude")]
    factor = getattr(head, "output_gain", 1.0)
    last = [branch.conv3 if hasattr(branch, "conv3") else branch[-1] for branch in branches]
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    for conv in last:
        seen: list[torch.Tensor] = []
        hook = conv.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output))
        with torch.inference_mode():
            model(image, torch.tensor([[0.5]]))
        hook.remove()
        mean, gain = seen[0].mean(), 10.0 / factor / seen[0].std()
        conv.weight.data *= gain
        conv.bias.data = 20.0 / factor + gain * (conv.bias.data - mean)
    payload["model_state_dict"] = model.state_dict()
    save_checkpoint(path, payload)
    return path


def plain_loop(checkpoint: Path, data: Path, tta: str, out: Path) -> None:
    """The reference: prints its seconds and its peak memory."""
    device = local_device()
    allow_tf32(False)
    model = load_model(checkpoint)
    member = Member(model).to(device)
    views = Tta.from_name(None if tta == "null" else tta)
    (out / "submission").mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    records = read_split(data, "test")
    with torch.inference_mode():
        for record in records:
            rgb = torch.from_numpy(read_rgb(record.rgb_file())).permute(2, 0, 1)[None]
            gsd_m = torch.tensor([[record.gsd_m]], device=device)
            found = views(member, rgb.contiguous().to(device), gsd_m)
            write_prediction(
                out / "submission",
                record.rgb.name,
                to_centimetres(found.agl_m).agl_cm[0].cpu().numpy().astype(np.uint16),
                float(found.scale_px_per_m[0]),
                float(found.angle_rad[0]),
            )
    seconds = time.perf_counter() - started
    gpu = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    print(f"images in {seconds:.3f} s")
    print(MEMORY, gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def quantized(path: Path, checkpoint: Path, data: Path) -> Path:
    """The network in 8 bits, calibrated on parts of the images, which have no truth."""
    arguments = ["quantize", str(checkpoint), str(path), "--data-dir", str(data)]
    arguments += ["--split", "test", "--images", "8", "--size", "512", "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "geopose.checkpoints", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"quantize failed: {done.stderr.strip().splitlines()[-1]}")
    return path


def run_case(case: Case, checkpoint: Path, data: Path, folder: Path) -> None:
    """One more measurement of a case."""
    settings = {"PYTHONPATH": str(ROOT)}
    if case.name == PLAIN:
        arguments = ["-m", "benchmarks.inference", "--plain"]
        arguments += [str(checkpoint), str(data), case.tta, str(case.out)]
    else:
        config = folder / "config.yaml"
        if case.backend == INT8:
            checkpoint = folder / f"{checkpoint.stem}.int8"
        models = {"ensemble": {"models": [str(checkpoint)]}, "submission_dir": str(case.out)}
        config.write_text(json.dumps(models))
        arguments = ["-c", _SUBMIT, str(config), "--data-dir", str(data), "--force"]
        backend = "auto" if case.backend == INT8 else case.backend
        arguments += [f"ensemble.tta={case.tta}", f"inference.backend={backend}"]
        arguments += [f"inference.precision={case.precision}"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **settings},
    )  # fmt: skip
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"{case.name} failed: {said.strip().splitlines()[-1]}")
    case.seconds.append(float(re.findall(r"images? in ([\d.]+) s", said)[-1]))
    case.peak_bytes = max(case.peak_bytes, float(re.findall(MEMORY + r"\s*(\d+)", said)[-1]))


def difference(truth: Path, found: Path) -> tuple[float, float]:
    """Largest difference of written heights in cm, and R2, over all images."""
    largest, squares, total, heights = 0.0, 0.0, 0.0, []
    for path in sorted((truth / "submission").glob("*_AGL.tif")):
        expected = read_agl_cm(path).astype(np.float64)
        error = read_agl_cm(found / "submission" / path.name) - expected
        largest, squares = max(largest, float(np.abs(error).max())), squares + (error**2).sum()
        heights.append(expected)
    mean = np.mean([h.mean() for h in heights])
    total = sum(((h - mean) ** 2).sum() for h in heights)
    return largest, 1.0 - squares / total


def peak_flops(precision: str) -> float:
    """Operations a second of a large 3 x 3 convolution, the best of several."""
    device = local_device()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    allow_tf32(precision != "fp32")
    side, channels = (1024, 512) if device.type == "cuda" else (256, 256)
    x = torch.randn(1, channels, side, side, device=device).to(
        kind, memory_format=torch.channels_last
    )
    weight = torch.randn(channels, channels, 3, 3, device=device).to(kind)
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * 9 * channels**2 * side**2 / (time.perf_counter() - started))
    return best


def rows(cases: list[Case], model: str, size: int, images: int) -> list[str]:
    """The table's lines of one network and set of views."""
    with torch.device("meta"):
        inputs = (torch.zeros(1, 3, size, size), torch.zeros(1, 1))
    views = len(Tta.from_name(None if cases[0].tta == "null" else cases[0].tta).views)
    flop = count(shipped_model(f"model={model}"), *inputs).flop * views
    plain = cases[0]
    lines = []
    for case in cases:
        seconds = statistics.median(case.seconds) / images
        centimetres, r2 = difference(plain.out, case.out)
        share = flop / seconds / peak_flops(case.precision)
        lines.append(
            f"| {model} | {case.tta} | {case.name} | {seconds:.2f} "
            f"({', '.join(f'{s / images:.2f}' for s in case.seconds)}) | "
            f"{statistics.median(plain.seconds) / images / seconds:.2f} | "
            f"{case.peak_bytes / 1e9:.1f} | {centimetres:.0f} | {r2:.6f} | {100 * share:.0f} % |"
        )
    return lines


def all_cases() -> list[str]:
    """What this machine can do, as BACKEND:PRECISION."""
    if torch.cuda.is_available():
        return ["torch:fp32", "torch:tf32", "torch:bf16", "torch:fp16", "compile:bf16"]
    backends = ["torch", "openvino"] if has_openvino() else ["torch"]
    precisions = ["fp32", "bf16"] if has_native_bf16(local_device()) else ["fp32"]
    cases = [f"{backend}:{precision}" for precision in precisions for backend in backends]
    nncf = has_openvino() and importlib.util.find_spec("nncf") is not None
    return [*cases, f"{INT8}:{precisions[-1]}"] if nncf else cases


HEAD = (
    "| model | views | run | s per image (runs) | times faster | peak memory, GB | "
    "largest difference, cm | R2 | share of the peak |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measures and prints the table."""
    if sys.argv[1:2] == ["--plain"]:
        checkpoint, data, tta, out = sys.argv[2:]
        plain_loop(Path(checkpoint), Path(data), tta, Path(out))
        return
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["b7_unet", "b6_rdtsc_unet"])
    parser.add_argument("--checkpoint", type=Path, help="trained weights, of one of --models")
    parser.add_argument("--size", type=int, default=2048, help="side of the images")
    parser.add_argument("--images", type=int, default=20 if gpu else 1)
    parser.add_argument("--tta", nargs="+", default=["d4"] if gpu else ["null"])
    parser.add_argument("--cases", nargs="+", default=all_cases(), metavar="BACKEND:PRECISION")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.checkpoint and len(arguments.models) > 1:
        parser.error("--checkpoint has the weights of one network: name it with --models")
    device = torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} cores"
    print(
        f"{platform.platform()}, {device}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {arguments.images} images of {arguments.size} px\n"
    )
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder / "data", arguments.images, arguments.size)
        for model in arguments.models:
            checkpoint = arguments.checkpoint or calibrated_checkpoint(folder / "m.pth", model)
            if any(text.startswith(f"{INT8}:") for text in arguments.cases):
                quantized(folder / f"{checkpoint.stem}.int8", checkpoint, data)
            for tta in arguments.tta:
                measured = [Case(PLAIN, "", "fp32", tta, folder / "plain")]
                for number, text in enumerate(arguments.cases):
                    backend, precision = text.split(":")
                    out = folder / f"out-{number}"
                    measured.append(Case(f"{backend}, {precision}", backend, precision, tta, out))
                turns = [case for _ in range(arguments.repeats) for case in measured]
                for case in tqdm(turns, desc=f"{model}, {tta}", leave=False):
                    run_case(case, checkpoint, data, folder)
                print(
                    "\n".join(rows(measured, model, arguments.size, arguments.images)), flush=True
                )


if __name__ == "__main__":
    main()
