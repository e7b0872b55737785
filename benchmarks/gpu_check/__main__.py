"""Runs the steps of the check, each in a process of its own, and makes a table of what they say.

    python -m benchmarks.gpu_check [--out runs/gpu_check] [--minutes 8] [--steps NAME ...]

What a step found is kept in `--out`, and the step is not run again there. Exit code 0: all good;
1: something is not, or not all steps fitted into the time; 2: no GPU.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_check.rows import ROOT, Job, Row
from geopose.cli import ArgumentParser, run_command
from geopose.distributed import local_device
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path
from geopose.system.devices import use_device

# The module that each is a function of, imported when it is needed. In order of worth: what is left
# when the time is up is what matters least.
STEPS = {
    "versions": "inference_steps",
    "numbers": "inference_steps",
    "submission": "inference_steps",
    "training": "training_steps",
    "two_on_one_gpu": "training_steps",
    "one_nccl_rank": "training_steps",
    "speed": "inference_steps",
    "memory": "inference_steps",
    "layouts": "training_steps",
    "compiled": "inference_steps",
}
_LONGEST_S = 150.0  # of a step


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = ArgumentParser(description="What only a GPU can show; at most --minutes on one.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="keeps results")
    parser.add_argument("--minutes", type=float, default=8.0, help="all steps together")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = local_device()
    if device.type != "cuda":
        raise InputError("no GPU that torch can use: this check is for one; tests run on a CPU")
    if arguments.step:
        run_step(arguments.step, Job(device, (arguments.out / arguments.step).absolute()))
        return
    print(f"{torch.cuda.get_device_name(device)}, results in {arguments.out}", file=sys.stderr)
    _run_all(arguments.steps, arguments.out.absolute(), arguments.minutes)
    rows = _results(arguments.steps, arguments.out)
    print(table(rows))
    bad = [row.what for row in rows if row.good is False]
    if bad:
        raise RunError(f"{len(bad)} of {len(rows)} lines are not as they should be: {bad[0]}")


def run_step(name: str, job: Job) -> list[Row]:
    """Runs one step here and keeps what it found in `job.folder.json`."""
    shutil.rmtree(job.folder, ignore_errors=True)  # of a try that did not come to its end
    job.folder.mkdir(parents=True)
    use_device(job.device)
    steps = importlib.import_module(f"benchmarks.gpu_check.{STEPS[name]}")
    rows = getattr(steps, name)(job)
    with atomic_path(result_file(job.folder.parent, name)) as temporary:
        temporary.write_text(json.dumps([list(row) for row in rows]), encoding="utf-8")
    return rows


def result_file(out: Path, name: str) -> Path:
    """Where a step's rows are kept."""
    return out / f"{name}.json"


def _run_all(names: Sequence[str], out: Path, minutes: float) -> None:
    until = time.monotonic() + 60.0 * minutes
    for name in names:
        left = until - time.monotonic()
        if result_file(out, name).exists():
            continue
        if left <= 0:
            print(f"{name}: no time left; run again to go on", file=sys.stderr)
            continue
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), "--step", name]
        started = time.monotonic()
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=min(left, _LONGEST_S)).returncode
            outcome = "" if code == 0 else f", failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = ", took too long"
        print(f"{name}: {time.monotonic() - started:.0f} s{outcome}", file=sys.stderr)


def _results(names: Sequence[str], out: Path) -> list[Row]:
    rows = []
    for name in names:
        path = result_file(out, name)
        if path.exists():
            rows += [Row(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        else:
            rows.append(Row(name, "not finished", False))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows in Markdown, for docs/benchmarks.md."""
    marks = {True: "yes", False: "**no**", None: ""}
    lines = [f"| {row.what} | {row.value} | {marks[row.good]} |" for row in rows]
    return "\n".join(["| what | found | as it should be |", "|---|---|---|", *lines])


if __name__ == "__main__":
    sys.exit(run_command(main))
