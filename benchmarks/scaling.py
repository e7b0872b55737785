"""How inference scales: images a second with more processes, memory with more images.

    python benchmarks/scaling.py processes [--images 40] [--size 1024] [--repeats 3]
    python benchmarks/scaling.py decoding [the same]
    python benchmarks/scaling.py memory [--size 512]

Runs the real commands on made-up images, with a network of random weights. `processes` compares one
process on one core with one process a core; `decoding` compares images decoded when they are needed
with images decoded ahead, by processes on the same cores. Layouts take turns,
so that whatever else the machine does disturbs all of them alike. `memory` compares the largest
resident memory of one process over 10, 100 and 500 images.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.data.rgb import write_png
from geopose.models.build import build_model

ROOT = Path(__file__).resolve().parents[1]
Layouts = dict[str, tuple[list[str], set[int]]]  # name -> (command, cores it may use)
_SUBMIT = """
import resource, sys
from geopose.cli import run_command
from geopose.inference.submission.command import submit
code = run_command(submit)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def make_data(folder: Path, images: int, size: int) -> Path:
    """A data directory with square test images of smooth colours and some noise."""
    (folder / "test").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows, y = [f"A_{number:03d}" for number in range(images)], np.arange(size) / 40
    smooth = 120 + 60 * np.sin(y)[:, None, None] * np.cos(y)[None, :, None]
    rgb = (smooth + generator.integers(0, 60, (size, size, 3))).astype(np.uint8)
    for number, name in enumerate(rows):
        write_png(folder / "test" / f"{name}_RGB.png", np.roll(rgb, 7 * number, axis=1))
    (folder / "metadata.csv").write_text("\n".join(["id,city,gsd", *(f"{n},A,0.5" for n in rows)]))
    (folder / "geopose_test.csv").write_text(
        "\n".join(["id,rgb", *(f"{n},{n}_RGB.png" for n in rows)])
    )
    return folder


def make_checkpoint(path: Path, model: str) -> Path:
    """A checkpoint of one of `configs/model` with random weights."""
    with initialize_config_dir(str(ROOT / "configs/model"), version_base="1.3"):
        config = OmegaConf.to_container(compose(model))
    torch.manual_seed(0)
    weights = build_model(config, load_pretrained=False).state_dict()  # type: ignore[arg-type]
    data = {"config": {"model": config, "train": {"downsample": 1}}}
    save_checkpoint(path, {"model_state_dict": weights, "checkpoint_data": data})
    return path


def write_config(folder: Path, checkpoint: Path) -> Path:
    """An inference config of one model without views. (JSON is YAML.)"""
    config = {"ensemble": {"models": [str(checkpoint)]}, "submission_dir": str(folder / "out")}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder / "config.yaml"


def run(arguments: list[str], cores: set[int]) -> subprocess.CompletedProcess[str]:
    """Runs a command of the project on some cores only."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def process_layouts(common: list[str], every: list[int]) -> Layouts:
    """One process on one core, and one process on every core."""
    return {
        "1 process, 1 core": (["submit.py", *common], set(every[:1])),
        f"{len(every)} processes, {len(every)} cores": (
            ["submit_ddp.py", *common, "--nproc", str(len(every))],
            set(every),
        ),
    }


def decoding_layouts(common: list[str], every: list[int]) -> Layouts:
    """One process that decodes when an image is needed, and with decoders beside it."""
    return {
        f"{workers} decoding processes": (
            ["submit.py", *common, f"inference.num_workers={workers}"],
            set(every),
        )
        for workers in range(len(every) + 1)
    }


def compare(layouts: Layouts, images: int, repeats: int) -> None:
    """Prints images a second and waiting times of each layout."""
    speeds: dict[str, list[float]] = {name: [] for name in layouts}
    waits: dict[str, str] = {}
    for _ in range(repeats):
        for name, (arguments, cores) in layouts.items():
            said = run(arguments, cores).stderr
            speeds[name].append(images / float(re.findall(r"images? in ([\d.]+) s", said)[-1]))
            waits[name] = re.findall(r"the models (waited .*)", said)[-1]
    first = statistics.median(next(iter(speeds.values())))
    for name, values in speeds.items():
        middle = statistics.median(values)
        each = ", ".join(f"{value:.3f}" for value in values)
        print(f"{name}: {middle:.3f} images/s ({each}), x {middle / first:.2f}; {waits[name]}")


def compare_memory(folder: Path, size: int, model: str) -> None:
    """Prints the largest resident memory of the main process over more and more images."""
    config = write_config(folder, make_checkpoint(folder / "model.pth", model))
    for images in (10, 100, 500):
        data = make_data(folder / f"data{images}", images, size)
        common = [str(config), "--data-dir", str(data), "--force"]
        done = run(["-c", _SUBMIT, *common], os.sched_getaffinity(0))
        print(f"{images} images: {int(done.stdout.split()[-1]) / 1024:.0f} MiB")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("what", choices=("processes", "decoding", "memory"))
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--model", default="mobilenet_unet", help="one of configs/model")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, torch {torch.__version__}, {arguments.model}")
    with tempfile.TemporaryDirectory() as name:
        folder, size, model = Path(name), arguments.size, arguments.model
        if arguments.what == "memory":
            compare_memory(folder, size, model)
            return
        data = make_data(folder / "data", arguments.images, size)
        config = write_config(folder, make_checkpoint(folder / "model.pth", model))
        layouts = process_layouts if arguments.what == "processes" else decoding_layouts
        common = [str(config), "--data-dir", str(data), "--force"]
        every = sorted(os.sched_getaffinity(0))
        compare(layouts(common, every), arguments.images, arguments.repeats)


if __name__ == "__main__":
    main()
