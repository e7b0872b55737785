"""Trains and scores one recipe with one seed, and measures how long its updates take."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.recipe.holdout import Holdout, hold_out
from benchmarks.recipe.plan import Plan, plan_for, seconds_a_crop, short_plan, speed_of
from benchmarks.recipe.table import COLUMNS, SPEED_COLUMNS, append, key_of, read_rows
from benchmarks.recipe.terms import Book, Recipe, mark_of, network, value_of, write_network
from benchmarks.scoring import Figures, predict, read_views
from geopose.errors import RunError
from geopose.inference.predict.tta import Tta

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SCENES = ["--train", "60", "--test", "0", "--size", "512", "--seed", "3", "--preset", "mixed"]
KEPT = "kept"


@dataclass(frozen=True)
class Case:
    """A recipe with the network that it trains: all that train.py is told but plan and data."""

    name: str
    overrides: tuple[str, ...]
    settings: str  # changes with any of it

    @property
    def batch(self) -> int:
        """Images an update."""
        return int(value_of(self.overrides, "batch_size", "4"))


@dataclass(frozen=True)
class Options:
    """What the command line says about all runs."""

    data_dir: Path
    out: Path
    csv: Path
    model: str
    tta: tuple[str, ...]  # views that every run is scored with, in turn
    minutes: float
    crops: int | None  # in place of minutes

    @property
    def speeds(self) -> Path:
        """The neighbour of the CSV file."""
        return self.csv.with_name(f"{self.csv.stem}_speed.csv")

    @property
    def budget(self) -> str:
        """As it stands in the rows."""
        return f"{self.crops} crops" if self.crops else f"{self.minutes:g} min"


def launch(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A program of the repository in a process of its own."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def call(arguments: Sequence[str]) -> None:
    """The same; RunError with its last line if it fails."""
    done = launch(arguments)
    if done.returncode:
        lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise RunError(f"{' '.join(arguments)}: {lines[-1]}")


def say(text: str) -> None:
    """One line about what goes on."""
    print(text, file=sys.stderr, flush=True)


def make_data(data_dir: Path) -> None:
    """Renders the scenes if there is no data set yet."""
    if (data_dir / "geopose_train.csv").is_file():
        return
    say(f"rendering scenes into {data_dir}")
    call(["-m", "geopose.sample_city", "--out", str(data_dir.resolve()), *SCENES])
    call(["convert_j2k.py", "--data-dir", str(data_dir.resolve())])


def make_case(book: Book, recipe: Recipe, extra: Sequence[str], options: Options) -> Case:
    """The case of a recipe; its network is written where train.py finds it."""
    node = network(CONFIGS, options.model, book.heads[recipe.heads])
    option = write_network(options.out / "configs", f"{options.model}_{recipe.heads}", node)
    overrides = book.overrides(recipe, extra)
    return Case(recipe.name, (option, *overrides), mark_of(overrides, node))


def _train(
    case: Case, holdout: Holdout, plan: Plan, run_dir: Path, options: Options, *more: str
) -> None:
    """Trains, or goes on, or finds that it is done."""
    call(
        [
            *("train.py", "--config-dir", str((options.out / "configs").resolve())),
            *case.overrides,
            f"dataset.data_dir={holdout.data_dir.resolve()}",
            f"dataset.num_folds={holdout.num_folds}",
            *plan.overrides,
            "train.early_stopping=0",
            f"runner.checkpoints=[{{name: {KEPT}, metric: metrics/mean_r2, mode: max}}]",
            f"runner.top_k={plan.epochs}",
            f"experiment={run_dir.resolve()}",
            *more,
        ]
    )


def run(case: Case, seed: int, options: Options, first: Case) -> None:
    """Trains and scores one run unless its rows are there; adds one for each split and all views.

    Args:
        case: the recipe.
        seed: of the training; it also chooses the held-out city and scenes.
        options: of the comparison.
        first: the case whose speed the others are measured by.

    Raises:
        RunError: the training failed.
        InputError: the data is too small, or the speed was not measured.
    """
    holdout = hold_out(options.data_dir, seed, options.out)
    done = {key_of(row) for row in read_rows(options.csv)}
    rows = [row for row in wanted_rows(case, seed, options, holdout) if key_of(row) not in done]
    if not rows:
        return
    plan = plan_for(holdout.train, case.batch, _updates(case, options, first))
    name = f"{case.name}_seed{seed}"
    run_dir = options.out / f"{name}_{mark_of(case.settings, holdout.mark, plan)}"
    _train(case, holdout, plan, run_dir, options, f"seed={seed}")
    crops = plan.updates * case.batch / plan.epochs
    seconds = sum(each * crops for each in seconds_a_crop(run_dir))
    weights = last_weights(run_dir, plan.epochs)
    for row in rows:
        row |= {"updates": plan.updates, "seconds": round(seconds)}
        row |= _figures(weights, holdout, str(row["split"]), str(row["tta"]))
        append(options.csv, COLUMNS, [row])  # views that a network refuses end the run here
    _drop_other_epochs(run_dir, plan.epochs)
    said = ", ".join(f"{row['split']} ({row['tta']}) {row['score']:+.3f}" for row in rows)
    say(f"{name} without {holdout.city}: {said}; {plan.updates} updates, {seconds:.0f} s")


def wanted_rows(
    case: Case, seed: int, options: Options, holdout: Holdout
) -> list[dict[str, object]]:
    """The rows of a run before it is scored."""
    common = {
        "model": options.model,
        "recipe": case.name,
        "settings": case.settings,
        "data": holdout.mark,
        "budget": options.budget,
        "seed": seed,
        "held_out": holdout.city,
        "batch": case.batch,
    }
    return [
        {**common, "tta": tta, "split": split} for tta in options.tta for split in holdout.splits
    ]


def _updates(case: Case, options: Options, first: Case) -> float:
    if options.crops:
        return options.crops / case.batch
    rows = [row for row in read_rows(options.speeds) if row["model"] == options.model]
    own, reference = (case.name, case.settings), (first.name, first.settings)
    return 60 * options.minutes / speed_of(rows, reference, own)


def last_weights(run_dir: Path, epochs: int) -> Path:
    """The checkpoint of the last epoch, of the averaged weights if there are any."""
    averaged = run_dir / f"checkpoints_{KEPT}_ema"
    folder = averaged if averaged.is_dir() else run_dir / f"checkpoints_{KEPT}"
    return folder / f"epoch_{epochs:04d}.pth"


def tta_named(name: str) -> str | None:
    """Views by the word of the command line; InputError if there are none of that name."""
    tta = None if name == "none" else name
    Tta.from_name(tta)
    return tta


def _figures(checkpoint: Path, holdout: Holdout, split: str, tta: str) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = Figures()
    views = read_views(holdout.splits[split])
    for view, pose in predict(checkpoint, views, tta_named(tta), device):
        figures.update(view, pose)
    return figures.result()


def _drop_other_epochs(run_dir: Path, epochs: int) -> None:
    """Leaves the last weights alone: the epochs before were only kept to be sure of that one."""
    for path in run_dir.glob(f"checkpoints_{KEPT}*/*.pth"):
        if path.name not in (f"epoch_{epochs:04d}.pth", "last.pth"):
            path.unlink()


def calibrate(case: Case, number: int, updates: int, options: Options) -> None:
    """Measures seconds an update of a recipe in one round; adds a row to the speeds."""
    holdout = hold_out(options.data_dir, 0, options.out)
    run_dir = options.out / "speed" / f"{case.name}_{case.settings}_{number}"
    shutil.rmtree(run_dir, ignore_errors=True)
    plan = short_plan(holdout.train, case.batch, updates)
    _train(case, holdout, plan, run_dir, options, "train.fast=true", "seed=0")
    warm = seconds_a_crop(run_dir)[1:]  # the first epoch decodes, compiles and allocates
    shutil.rmtree(run_dir)
    row = {
        "model": options.model,
        "recipe": case.name,
        "settings": case.settings,
        "round": number,
        "batch": case.batch,
        "seconds_an_update": statistics.median(warm) * case.batch,
    }
    append(options.speeds, SPEED_COLUMNS, [row])
    say(f"round {number}: {case.name} {row['seconds_an_update']:.4g} s an update")
