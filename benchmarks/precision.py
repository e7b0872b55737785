"""Does bf16 learn as well as fp32: the sample model from several seeds in both, equal epochs.

    python benchmarks/precision.py --data-dir runs/quickstart/data [--epochs 2] [--seeds 3]

Each training sees the same number of crops, whatever its speed. Trainings of one thread each run
side by side, one a core. The score is that of the last epoch on whole validation images (fold 0):
no epoch is picked. Trainings that --out already holds are not repeated.
"""

import argparse
import csv
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopose.system.cores import usable_cores  # noqa: E402

TOLERANCE = 0.005
COLUMNS = ("metrics/mean_r2", "metrics/agl_r2", "metrics/vflow_r2")


@dataclass(frozen=True)
class Training:
    """One training of the benchmark."""

    precision: str
    seed: int


def run(training: Training, data_dir: Path, out: Path, epochs: int, extra: Sequence[str]) -> Path:
    """Trains, or goes on, or finds that it is done; returns the run directory."""
    run_dir = out / f"{training.precision}_seed{training.seed}"
    arguments = [
        *("model=sample_unet", "loss=huber_cos_flow", "optimizer=sample", "scheduler=sample"),
        *("train=sample", f"train.epochs={epochs}", "batch_size=8", f"seed={training.seed}"),
        *(f"optimizer.precision={training.precision}", f"dataset.data_dir={data_dir.resolve()}"),
        f"experiment={run_dir.resolve()}",
        *extra,
    ]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
    return run_dir


def last_row(run_dir: Path) -> dict[str, float]:
    """The last epoch's metrics, and the seconds of training that images_per_s stands for."""
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = {name: float(rows[-1][f"valid/{name}"]) for name in COLUMNS}
    row["images_per_s"] = statistics.median(float(row["images_per_s"]) for row in rows)
    row["skipped"] = sum(float(row["skipped_steps"]) for row in rows)
    return row


def table(results: dict[Training, dict[str, float]]) -> str:
    """The results as Markdown, with the mean difference that decides."""
    lines = ["| precision | seed | mean R² | AGL R² | flow R² | images/s | steps skipped |"]
    lines.append("|---|---|---|---|---|---|---|")
    for training, row in results.items():
        scores = " | ".join(f"{row[name]:.4f}" for name in COLUMNS)
        lines.append(
            f"| {training.precision} | {training.seed} | {scores} | {row['images_per_s']:.1f} "
            f"| {row['skipped']:.0f} |"
        )
    means = {
        precision: statistics.mean(
            row[COLUMNS[0]] for t, row in results.items() if t.precision == precision
        )
        for precision in dict.fromkeys(t.precision for t in results)
    }
    lines.append("")
    lines += [f"mean of {name}: {value:.4f}" for name, value in means.items()]
    difference = means["bf16"] - means["fp32"]
    verdict = "reaches" if difference >= -TOLERANCE else "does not reach"
    lines.append(f"bf16 - fp32: {difference:+.4f}: {verdict} fp32 within {TOLERANCE}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="of a sample city")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_precision"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each precision")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="trainings at a time")
    parser.add_argument("extra", nargs="*", metavar="KEY=VALUE", help="further keys of train.py")
    args = parser.parse_args()
    trainings = [Training(p, seed) for seed in range(args.seeds) for p in ("fp32", "bf16")]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = pool.map(
            lambda t: run(t, args.data_dir, args.out, args.epochs, args.extra), trainings
        )
        results = dict(zip(trainings, map(last_row, folders), strict=True))
    processor = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {processor}, {args.jobs} trainings at a time, 1 thread each")
    print(f"{args.epochs} epochs each\n")
    print(table(results))


if __name__ == "__main__":
    main()
