"""Which recipe of training is best: equal time, equal data, scenes and a city that none has seen.

    python benchmarks/recipes.py --calibrate                    # seconds an update of every recipe
    python benchmarks/recipes.py --minutes 5 [--seeds 4] [--jobs 2] [--tta none d4]
    python benchmarks/recipes.py --crops 10000 [--recipes baseline recommended]

Recipes stand in recipes.yaml. Seed i holds city i (mod cities) out whole ("new city") and a fifth
of the scenes of the others ("same cities"), and seeds the training with i. A training is train.py
in a process of its own. Scored are the weights after the last update, the averaged ones where there
are any: nothing is chosen by looking at scenes. (Training validates on a scene of each city of its
own part, and nobody uses that.)

Equal time: --calibrate trains all recipes for a few updates in turn, several rounds, and writes
recipes_speed.csv beside the CSV file. What the first recipe takes is the median of its rounds;
another takes that times the median of its ratios to the first within a round, so that other load on
the machine falls out. A run then gets the updates that fit into --minutes and a schedule that spans
them; the clock has no say, so a loaded machine or a stop changes nothing.

Rows go to the CSV file as soon as a run is scored. Runs that stand there with the same settings are
skipped, and a training that was cut off goes on (in runs/recipes), so all can be spread over
sittings. A recipe that changes is run anew; its old rows stay and are not in the table.

The data is made on first use:

    python -m geopose.sample_city --out runs/recipes/data --train 60 --test 0 --size 512 \\
        --seed 3 --preset mixed
    python convert_j2k.py --data-dir runs/recipes/data

Real encoders on a GPU and real data are the same two commands, with what differs after `--`:

    python benchmarks/recipes.py --calibrate --updates 200 --data-dir /data/geopose \\
        --model b7_unet --csv results/b7.csv -- train=light_768
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.recipe.holdout import hold_out  # noqa: E402
from benchmarks.recipe.runs import (  # noqa: E402
    Case,
    Options,
    calibrate,
    make_case,
    make_data,
    run,
    say,
    tta_named,
    wanted_rows,
)
from benchmarks.recipe.table import key_of, read_rows, table  # noqa: E402
from benchmarks.recipe.terms import read_recipes  # noqa: E402
from geopose.errors import GeoposeError  # noqa: E402

RECIPES = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).parent / "results" / "recipes.csv"


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="the first is what others are "
                        "compared with (default: all of the file)")  # fmt: skip
    parser.add_argument("--file", type=Path, default=RECIPES, help="recipes.yaml")
    parser.add_argument("--seeds", type=int, default=4, help="runs of each recipe (4)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training (5)")
    parser.add_argument("--crops", type=int, help="of each training, in place of equal time")
    parser.add_argument("--calibrate", action="store_true", help="time updates, train no run")
    parser.add_argument("--rounds", type=int, default=3, help="of --calibrate (3)")
    parser.add_argument("--updates", type=int, default=30, help="of an epoch of --calibrate (30)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (1)")
    parser.add_argument("--tta", nargs="+", default=["none"], help="views to score every run with, "
                        "each as in an inference config (none)")  # fmt: skip
    parser.add_argument("--model", default="sample_unet", help="option of configs/model")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "runs/recipes/data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/recipes", help="run directories")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="results, added to")
    parser.add_argument("extra", nargs="*", metavar="KEY=VALUE", help="of train.py, after --")
    return parser


def run_all(cases: Sequence[Case], seeds: int, jobs: int, options: Options) -> list[str]:
    """Every run, seed by seed, so that a stopped comparison is an even one; returns failures."""
    failures: list[str] = []

    def one(case: Case, seed: int) -> None:
        try:
            run(case, seed, options, cases[0])
        except GeoposeError as error:
            failures.append(f"{case.name} seed {seed}: {error}")
            say(f"error: {failures[-1]}")

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, case, seed) for seed in range(seeds) for case in cases]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def results(cases: Sequence[Case], seeds: int, options: Options) -> str:
    """A table for each of the views, of the rows that these runs have."""
    holdouts = [hold_out(options.data_dir, seed, options.out) for seed in range(seeds)]
    wanted = {
        key_of(row)
        for seed, holdout in enumerate(holdouts)
        for case in cases
        for row in wanted_rows(case, seed, options, holdout)
    }
    rows = {key_of(row): row for row in read_rows(options.csv) if key_of(row) in wanted}
    names = [case.name for case in cases]
    parts = []
    for tta in options.tta:
        if own := [row for row in rows.values() if row["tta"] == tta]:
            said = f"`{options.model}`, {options.budget} each, views: {tta}"
            parts.append(f"{said}\n\n{table(own, names)}")
    return "\n\n".join(parts) or "no results yet"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the table goes to standard output."""
    args = build_parser().parse_args(argv)
    views = tuple(dict.fromkeys(args.tta))
    options = Options(
        args.data_dir, args.out, args.csv, args.model, views, args.minutes, args.crops
    )
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # as the trainings have
    try:
        for tta in views:
            tta_named(tta)
        book = read_recipes(args.file)
        recipes = [book.named(name) for name in args.recipes or book.recipes]
        make_data(options.data_dir)
        cases = [make_case(book, recipe, args.extra, options) for recipe in recipes]
        if args.calibrate:
            calibrate_all(cases, args.rounds, args.updates, options)
            return 0
        failures = run_all(cases, args.seeds, args.jobs, options)
        print(results(cases, args.seeds, options))
    except GeoposeError as error:
        say(f"error: {error}")
        return 1
    return 1 if failures else 0


def calibrate_all(cases: Sequence[Case], rounds: int, updates: int, options: Options) -> None:
    """Recipes in turn, so that what the machine does meanwhile meets all of them."""
    before = [int(row["round"]) for row in read_rows(options.speeds)]
    start = 1 + max(before, default=0)
    for number in range(start, start + rounds):
        for case in cases:
            calibrate(case, number, updates, options)


if __name__ == "__main__":
    sys.exit(main())
