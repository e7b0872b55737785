"""What a calibration of heights and flow is worth on trainings of recipes.py.

    python benchmarks/gains.py runs/recipes/recommended_seed0_* runs/recipes/recommended_seed1_* ...

For each run the two gains of `geopose.checkpoints calibrate` are fitted on its held-out scenes of
the cities that it knows. "same cities" is fitted on one half of them and measured on the other,
both ways; "new city" is measured with the gains of all of them on the city that it has never seen.
One view an image. The seed of a run, and with it what was held out, is that of the folder's name.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.recipe.holdout import NEW, SAME, Holdout, hold_out  # noqa: E402
from benchmarks.recipe.runs import KEPT  # noqa: E402
from benchmarks.scoring import predict, read_views  # noqa: E402
from geopose.calibration.fit import Fit, ImageSums, fit, score_with  # noqa: E402

_ROW = (
    "| {name} | {agl:.3f} | {magnitude:.3f} | {same:.3f} | {same_gain:+.3f} | {new:.3f} "
    "| {new_gain:+.3f} |"
)


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "runs/recipes/data")
    return parser


def sums(checkpoint: Path, holdout: Holdout, split: str) -> list[ImageSums]:
    """What a network says of each image of a split, beside its truth."""
    return [
        ImageSums.of(
            view.city,
            (pose.agl_m.clip(min=0), pose.scale_px_per_m, pose.angle_rad),
            (view.truth.agl_m, view.truth.scale_px_per_m, view.truth.angle_rad),
        )
        for view, pose in predict(checkpoint, read_views(holdout.splits[split]), None)
    ]


def measured(run_dir: Path, data_dir: Path) -> tuple[Fit, float, float]:
    """The gains with what they do to the same cities; the score of a new one without and with."""
    seed = re.search(r"_seed(\d+)_", run_dir.name)
    checkpoints = sorted(run_dir.glob(f"checkpoints_{KEPT}_ema/epoch_*.pth"))
    if not seed or not checkpoints:
        sys.exit(f"{run_dir}: no averaged weights of a run of recipes.py; give its directory")
    holdout = hold_out(data_dir, int(seed[1]), run_dir.parent)
    found = fit(sums(checkpoints[-1], holdout, SAME))
    new = sums(checkpoints[-1], holdout, NEW)
    return found, score_with(new), score_with(new, found.gains)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the table goes to standard output."""
    args = build_parser().parse_args(argv)
    print("| run | heights x | flow x | same cities | calibrated | new city | calibrated |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for run_dir in args.runs:
        found, before, after = measured(run_dir, args.data_dir)
        row = {
            **found.gains._asdict(),
            "same": found.halves[0],
            "same_gain": found.halves[1] - found.halves[0],
            "new": before,
            "new_gain": after - before,
        }
        rows.append(row)
        print(_ROW.format(name=run_dir.name.rpartition("_")[0], **row), flush=True)
    print(_ROW.format(name="mean", **{k: statistics.fmean(r[k] for r in rows) for k in rows[0]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
