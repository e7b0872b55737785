"""Why a run ends before its last epoch: no improvement, or no time left."""

import math
import time
from collections.abc import Mapping
from typing import Any

from catalyst.core.callback import Callback

from geopose.distributed import broadcast_number
from geopose.training.callbacks.checkpoint import rank_of


class TimeBudget:
    """Counts from its making. Rank 0's clock is everybody's, or rates would differ by rank.

    Args:
        minutes: the limit; None = no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else 60.0 * minutes
        self._start = time.monotonic()
        self.share_used = 0.0  # 0..1, as of the last update; stays 0 where there is no limit

    def seconds_used(self) -> float:
        """Time since the start, with that of earlier sessions."""
        return time.monotonic() - self._start

    def add(self, seconds: float) -> None:
        """Counts the time of earlier sessions of a resumed run."""
        self._start -= seconds

    def update(self) -> None:
        """Reads the clock; every rank must call it equally often."""
        if self._seconds is not None:
            self.share_used = broadcast_number(min(1.0, self.seconds_used() / self._seconds))


class EarlyStoppingCallback(Callback):
    """Ends the run after `patience` epochs without a better metric."""

    def __init__(self, patience: int, metric: str, mode: str) -> None:
        super().__init__(order=0)
        self._patience, self._metric, self._mode = patience, metric, mode
        self._best = math.inf
        self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        """The best so far and the epochs since."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on waiting."""
        self._best, self._waited = state["best"], state["waited"]

    def on_epoch_end(self, runner: Any) -> None:
        """Compares and counts."""
        rank = rank_of(float(runner.epoch_metrics["valid"][self._metric]), self._mode)
        self._waited = 0 if rank < self._best else self._waited + 1
        self._best = min(self._best, rank)
        runner.need_early_stop = runner.need_early_stop or self._waited >= self._patience


class TimeBudgetCallback(Callback):
    """Ends the run when its time is up, in the middle of an epoch if need be; then validates."""

    def __init__(self, budget: TimeBudget) -> None:
        super().__init__(order=0)
        self._budget = budget
        self._is_over = False

    def state_dict(self) -> dict[str, Any]:
        """The time that has been used."""
        return {"seconds": self._budget.seconds_used()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Earlier sessions count."""
        self._budget.add(state["seconds"])

    def on_batch_start(self, runner: Any) -> None:
        """All ranks read the clock, and end, at the same batch: once an update, as each waits."""
        if runner.is_train_loader and runner.group_position == 0:
            self._budget.update()

    def on_batch_end(self, runner: Any) -> None:
        """Asks Catalyst to leave the training loader."""
        if runner.is_train_loader and self._budget.share_used >= 1.0:
            self._is_over = runner.need_early_stop = True

    def on_loader_end(self, runner: Any) -> None:
        """The flag ended this loader only; validation must not be cut short by it."""
        runner.need_early_stop = False

    def on_epoch_end(self, runner: Any) -> None:
        """No further epoch."""
        runner.need_early_stop = runner.need_early_stop or self._is_over
