"""What happens around training and validation: score, panels, and the reasons to end a run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from catalyst.core.callback import Callback, CallbackOrder, IMetricCallback
from torch import Tensor

from geopose.distributed import gather_objects, is_main
from geopose.keys import (
    INPUT_CITY_NAME,
    INPUT_IMAGE_ID_KEY,
    OUTPUT_AGL_MASK,
    OUTPUT_VFLOW_ANGLE,
    OUTPUT_VFLOW_SCALE,
    TARGET_AGL_MASK,
    TARGET_VFLOW_ANGLE,
    TARGET_VFLOW_SCALE,
)
from geopose.metrics import ScoreAccumulator
from geopose.training.budget import TimeBudget
from geopose.training.keep import rank_of
from geopose.training.panels import draw_panel

MAX_PANELS = 4  # prediction panels an epoch


class ScoreCallback(IMetricCallback):
    """The official score over the validation images, in double precision, each counted once."""

    def on_loader_start(self, runner: Any) -> None:
        """Starts empty."""
        self._score = ScoreAccumulator()

    def on_batch_end(self, runner: Any) -> None:
        """Adds every image of a validation batch."""
        if runner.is_train_loader:
            return
        batch = {key: _to_numpy(value) for key, value in runner.batch.items()}
        for i, city in enumerate(batch[INPUT_CITY_NAME]):
            self._score.update(
                city,
                batch[OUTPUT_AGL_MASK][i, 0],
                float(batch[OUTPUT_VFLOW_SCALE][i, 0]),
                float(batch[OUTPUT_VFLOW_ANGLE][i, 0]),
                batch[TARGET_AGL_MASK][i, 0],
                float(batch[TARGET_VFLOW_SCALE][i, 0]),
                float(batch[TARGET_VFLOW_ANGLE][i, 0]),
            )

    def on_loader_end(self, runner: Any) -> None:
        """`metrics/mean_r2` (the score), its two halves, and the values of every city."""
        if runner.is_train_loader:
            return
        total = ScoreAccumulator()
        for state in gather_objects(self._score.state()):
            total.merge(state)
        runner.loader_metrics.update(flat_metrics(total.result()))


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """A score as evaluate.py writes it, as `metrics/...` scalars for logs and checkpoints."""
    cities = result["cities"]
    flat = {"metrics/mean_r2": result["score"]}
    for name in ("agl_r2", "vflow_r2"):
        flat[f"metrics/{name}"] = sum(city[name] for city in cities.values()) / len(cities)
    for city, values in cities.items():
        flat[f"metrics/{city}/score"] = values["score"]
        for kind in ("mean", "rms"):
            flat |= {f"metrics/{city}/{kind}/{key}": v for key, v in values[kind].items()}
    return flat


def _to_numpy(value: Any) -> Any:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value


class EarlyStoppingCallback(Callback):
    """Ends the run after `patience` epochs without a better metric."""

    def __init__(self, patience: int, metric: str, mode: str) -> None:
        super().__init__(order=CallbackOrder.external)
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
        super().__init__(order=CallbackOrder.external)
        self._budget = budget
        self._is_over = False

    def state_dict(self) -> dict[str, Any]:
        """The time that has been used."""
        return {"seconds": self._budget.seconds_used()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Earlier sessions count."""
        self._budget.add(state["seconds"])

    def on_batch_start(self, runner: Any) -> None:
        """All ranks read the clock, and end, at the same batch."""
        if runner.is_train_loader:
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


class PanelCallback(Callback):
    """Prediction panels of the first validation images, to TensorBoard."""

    def __init__(self, channel_order: str) -> None:
        super().__init__(order=CallbackOrder.metric + 1)
        self._channel_order = channel_order

    def on_batch_end(self, runner: Any) -> None:
        """One panel for each of the first few validation batches, on rank 0."""
        if runner.loader_key != "valid" or not is_main() or self._shown >= MAX_PANELS:
            return
        self._shown += 1
        name = str(runner.batch[INPUT_IMAGE_ID_KEY][0])
        runner.log_image(tag=name, image=draw_panel(runner.batch, self._channel_order))

    def on_loader_start(self, runner: Any) -> None:
        """Counts anew."""
        self._shown = 0


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Every rank validates with rank 0's BatchNorm statistics, which are those that are saved."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)
