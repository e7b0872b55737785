"""Images a second and peak memory of a training step, for every shipped model and precision.

    python benchmarks/training.py [--models v2s_unet b7_unet] [--precisions fp32 bf16] [--size 768]
                                  [--batch-size 2] [--repeats 3] [--steps 3] [--out table.md]

A step is the forward pass, the loss, the backward pass and the optimizer's update of the training
config, on random images; reading data is not in it (benchmarks/input.py measures that). Beside our
step, in the configured memory layout, runs "plain": the same model in fp32 and contiguous layout,
on a CPU with the allocator as it comes. All cases take turns, each in a process of its own; the
median of the repeats counts. Memory is what torch allocates on a GPU at most, and the process's
resident memory on a CPU.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopose import keys  # noqa: E402
from geopose.construct import plain  # noqa: E402
from geopose.files.atomic import atomic_path  # noqa: E402
from geopose.geometry import angle_to_vector, flow_map  # noqa: E402
from geopose.losses.total import TOTAL_KEY, build_loss  # noqa: E402
from geopose.models.build import build_model  # noqa: E402
from geopose.system.memory import keep_freed_memory  # noqa: E402
from geopose.training.optim import build_optimizer  # noqa: E402
from geopose.training.precision import PRECISIONS, Precision  # noqa: E402

PLAIN = "plain"
# What pays: on a CPU tf32 is fp32, and fp16 a hundred times slower.
DEFAULT_PRECISIONS = {"cuda": ["fp32", "tf32", "bf16", "fp16"], "cpu": ["fp32", "bf16"]}


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    model: str
    precision: str  # or PLAIN
    size: int
    batch_size: int
    steps: int


def make_batch(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Random images, heights and flow."""
    count, side = case.batch_size, case.size
    generator = torch.Generator().manual_seed(0)
    agl_m = 20 * torch.rand(count, 1, side, side, generator=generator)
    angle = 6 * torch.rand(count, generator=generator)
    scale = torch.full((count, 1), 1.5)
    direction = angle_to_vector(angle)
    batch = {
        keys.INPUT_IMAGE_KEY: torch.randn(count, 3, side, side, generator=generator),
        keys.INPUT_GROUND_SAMPLE_DISTANCE: torch.full((count, 1), 0.5),
        keys.TARGET_AGL_MASK: agl_m,
        keys.TARGET_MAGNITUDE_MASK: agl_m * scale[..., None, None],
        keys.TARGET_VFLOW_SCALE: scale,
        keys.TARGET_VFLOW_ANGLE: angle[:, None],
        keys.TARGET_VFLOW_DIRECTION: direction,
    }
    batch[keys.TARGET_FLOW_MASK] = flow_map(batch[keys.TARGET_MAGNITUDE_MASK], direction)
    return {key: value.to(device) for key, value in batch.items()}


def run_case(case: Case) -> dict[str, float]:
    """Images a second and peak memory in MB, after one step to warm up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg: dict[str, Any] = plain(compose("config", [f"model={case.model}"]))
    is_plain = case.precision == PLAIN
    if device.type == "cpu" and not is_plain:
        keep_freed_memory()
    precision = Precision("fp32" if is_plain else case.precision, device)
    torch.manual_seed(0)
    model: Any = build_model(cfg["model"], load_pretrained=False).to(device).train()
    batch = make_batch(case, device)
    if cfg["channels_last"] and not is_plain:
        model = model.to(memory_format=torch.channels_last)
        image = batch[keys.INPUT_IMAGE_KEY]
        batch[keys.INPUT_IMAGE_KEY] = image.contiguous(memory_format=torch.channels_last)
    precision.adapt(model)
    criterion = build_loss(cfg["loss"])
    optimizer = build_optimizer(model, cfg["optimizer"], 1)

    def step() -> None:
        with precision.autocast():
            outputs = model(image, batch[keys.INPUT_GROUND_SAMPLE_DISTANCE])
        outputs = {name: value.float() for name, value in outputs.items()}
        loss = criterion(outputs, batch)[TOTAL_KEY]
        precision.scaler.scale(loss).backward()
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    wait()
    start = time.perf_counter()
    for _ in range(case.steps):
        step()
    wait()
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e6
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"images_per_s": case.steps * case.batch_size / seconds, "memory_mb": memory}


def in_own_process(case: Case) -> dict[str, float] | None:
    """The same in a fresh process; None if it fails, for example for lack of memory."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{case}: {done.stderr.strip().splitlines()[-1]}\n")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[Case, list[dict[str, float]]]) -> str:
    """Markdown; one row a case, with its speed as a multiple of that of the plain loop."""
    lines = [
        "| model | step | images/s | of plain | peak memory, MB | runs |",
        "|---|---|---|---|---|---|",
    ]
    speeds = {
        (case.model, case.precision): statistics.median(run["images_per_s"] for run in runs)
        for case, runs in results.items()
        if runs
    }
    for case, runs in results.items():
        if not runs:
            lines.append(f"| `{case.model}` | {case.precision} | failed | | | |")
            continue
        speed, reference = speeds[case.model, case.precision], speeds.get((case.model, PLAIN))
        ratio = f"{speed / reference:.2f}" if reference else ""
        memory = max(run["memory_mb"] for run in runs)
        every = ", ".join(f"{run['images_per_s']:.3g}" for run in runs)
        cells = [f"`{case.model}`", case.precision, f"{speed:.3g}", ratio, f"{memory:.0f}", every]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def describe_machine() -> str:
    """Device and versions, one line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Prints the table and writes it to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    shipped = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))
    usual = DEFAULT_PRECISIONS["cuda" if torch.cuda.is_available() else "cpu"]
    parser.add_argument("--models", nargs="+", choices=shipped, default=shipped, metavar="MODEL")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=usual)
    parser.add_argument("--size", type=int, default=768, help="side of the images (default: 768)")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed in every process")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(Case(**json.loads(arguments.case)))))
        return
    sizes = (arguments.size, arguments.batch_size, arguments.steps)
    cases = [
        Case(model, precision, *sizes)
        for model in arguments.models
        for precision in [PLAIN, *arguments.precisions]
    ]
    results: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(arguments.repeats):
        for case, runs in results.items():
            if (run := in_own_process(case)) is not None:
                runs.append(run)
    text = f"{describe_machine()}, {os.path.basename(__file__)} at {arguments.size} px, "
    text += f"{arguments.batch_size} images a step\n\n{table(results)}"
    print(text)
    if arguments.out:
        with atomic_path(arguments.out) as partial:
            partial.write_text(text)


if __name__ == "__main__":
    main()
