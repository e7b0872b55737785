"""Which split of CPU cores trains the sample model fastest: processes, threads, loader workers.

    python benchmarks/cpu_layouts.py --data-dir runs/quickstart/data [--repeats 3] [--seconds 30]

Every layout sees batches of 8 images a step in all. Layouts take turns, so that whatever else the
machine does disturbs all of them alike; the median of the repeats counts. Images a second include
decoding (from memory), augmentation, and the exchange of gradients.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TOTAL_BATCH = 8


@dataclass(frozen=True)
class Layout:
    """One way to use the cores."""

    processes: int
    threads: int
    workers: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} threads, {self.workers} workers each"


def layouts(cores: int) -> list[Layout]:
    """The candidates for a machine of `cores` cores."""
    return [
        Layout(cores, 1, 0),
        Layout(1, cores, 0),
        Layout(1, cores, 1),
        Layout(1, 1, max(1, cores - 1)),
    ]


def images_per_second(layout: Layout, data_dir: Path, seconds: float) -> float:
    """Trains for a while from random weights and returns the speed that the program reports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone"),
            f"--nproc_per_node={layout.processes}",
            *("train.py", "model=sample_unet", "loss=huber_cos_flow", "train=sample"),
            *("optimizer=sample", "scheduler=sample", "train.crops_per_image=1000"),
            f"batch_size={TOTAL_BATCH // layout.processes}",
            f"train.threads={layout.threads}",
            f"train.loaders.train.num_workers={layout.workers}",
            f"train.max_minutes={seconds / 60}",
            f"dataset.data_dir={data_dir}",
            f"experiment={folder}/run",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(layout.threads)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    return float(re.findall(r"([\d.]+) images/s", done.stderr)[-1])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    speeds: dict[Layout, list[float]] = {layout: [] for layout in layouts(cores)}
    for _ in range(arguments.repeats):
        for layout, values in speeds.items():
            values.append(images_per_second(layout, arguments.data_dir, arguments.seconds))
    print(f"{platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}")
    for layout, values in sorted(speeds.items(), key=lambda item: -statistics.median(item[1])):
        every = ", ".join(f"{value:.1f}" for value in values)
        print(f"{statistics.median(values):6.1f} images/s  {layout}  ({every})")


if __name__ == "__main__":
    main()
