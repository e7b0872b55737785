"""How many updates a recipe gets: seconds an update in, a plan of epochs and crops out."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from geopose.errors import InputError
from geopose.training.data.loaders import FAST_IMAGES

_FEW, _MANY = 8, 14  # epochs: enough for what a recipe does with the last ones
_NEAR = 0.02  # share by which a plan of so many epochs may miss what was asked for,
_OFF = 0.1  # and any plan


@dataclass(frozen=True)
class Plan:
    """Updates of a training, as train.py counts them."""

    epochs: int
    crops_per_image: int
    updates: int

    @property
    def overrides(self) -> tuple[str, str]:
        """For train.py."""
        return f"train.epochs={self.epochs}", f"train.crops_per_image={self.crops_per_image}"


def plan_of(scenes: int, batch: int, epochs: int, crops_per_image: int) -> Plan:
    """What comes of these; an epoch leaves its last, smaller batch out."""
    return Plan(epochs, crops_per_image, epochs * max(1, scenes * crops_per_image // batch))


def plan_for(scenes: int, batch: int, updates: float) -> Plan:
    """A plan of about the number of updates that is asked for, of few epochs if there is one.

    Every epoch ends with a validation and a checkpoint, which are no part of the time that counts.

    Raises:
        InputError: none is near, because an epoch has more.
    """
    plans = []
    for epochs in range(_FEW, _MANY + 1):
        crops = max(1, round(updates * batch / (epochs * scenes)))
        plans.append(plan_of(scenes, batch, epochs, crops))
    best = min(plans, key=lambda plan: abs(plan.updates - updates))
    one = plan_of(scenes, batch, 1, 1)
    if abs(best.updates - updates) > _NEAR * updates:  # epochs of one crop a scene, few or many
        best = plan_of(scenes, batch, max(1, round(updates / one.updates)), 1)
    if abs(best.updates - updates) > max(_OFF * updates, 1):
        raise InputError(
            f"{updates:.0f} updates of {batch} are asked for, and one epoch of {scenes} scenes has "
            f"{one.updates}; give more --minutes or --crops"
        )
    return best


def short_plan(scenes: int, batch: int, updates: int) -> Plan:
    """Three epochs, each of about `updates`, of the scenes that train.fast leaves."""
    few = min(scenes, FAST_IMAGES)
    return plan_of(few, batch, 3, max(1, round(updates * batch / few)))


def seconds_a_crop(run_dir: Path) -> list[float]:
    """Seconds that a crop took, in each epoch of a run."""
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        return [1 / float(row["images_per_s"]) for row in csv.DictReader(file)]


def speed_of(
    rows: Sequence[Mapping[str, str]], first: tuple[str, str], own: tuple[str, str]
) -> float:
    """Seconds an update of a recipe.

    Args:
        rows: of recipes_speed.csv, for one model.
        first: (recipe, settings) of the recipe that the others are compared with.
        own: those of the recipe.

    Raises:
        InputError: it was not measured together with the first one.
    """
    rounds: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in rows:
        seconds = float(row["seconds_an_update"])
        rounds[row["round"]][row["recipe"], row["settings"]] = seconds
    shared = [found for found in rounds.values() if first in found]
    ratios = [found[own] / found[first] for found in shared if own in found]
    if not ratios:
        raise InputError(f"recipe {own[0]} as it is now was never timed: run --calibrate first")
    every = [found[first] for found in shared]
    return statistics.median(every) * statistics.median(ratios)
