"""The callbacks of a run in the one order in which each event reaches them.

In: the config. Out: callbacks by name. Catalyst sorts by `order`, which is the place in this list.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalyst.core.callback import Callback

from geopose.models.build import channel_order, normalization
from geopose.training.callbacks.checkpoint import CheckpointCallback
from geopose.training.callbacks.plain import PlainEpochsCallback
from geopose.training.callbacks.report import MetricsFileCallback, ProgressCallback, SpeedCallback
from geopose.training.callbacks.score import ScoreCallback
from geopose.training.callbacks.step import (
    BackwardCallback,
    LossCallback,
    OptimizerCallback,
    PlateauCallback,
)
from geopose.training.callbacks.stop import EarlyStoppingCallback, TimeBudget, TimeBudgetCallback
from geopose.training.data.data_wait import DataWaitCallback


def build_callbacks(
    cfg: Mapping[str, Any], run_dir: Path, budget: TimeBudget, header: Mapping[str, Any]
) -> dict[str, Callback]:
    """The callbacks that a config asks for.

    Args:
        cfg: the whole config.
        run_dir: where they write.
        budget: the clock of `train.max_minutes`.
        header: what every checkpoint holds.
    """
    runner, train = cfg["runner"], cfg["train"]
    optimizer = OptimizerCallback(
        cfg["optimizer"]["clip_grad_norm"], train["max_skipped_share"], run_dir
    )
    patience = train["early_stopping"]
    plain_epochs = train["plain_epochs"]
    callbacks: dict[str, Callback | None] = {
        "plain": PlainEpochsCallback(plain_epochs, train["epochs"], budget)
        if plain_epochs
        else None,
        "loss": LossCallback(),
        "score": ScoreCallback(),
        "panels": _panels(cfg) if train["show"] else None,
        "backward": BackwardCallback(),
        "optimizer": optimizer,
        "schedule": PlateauCallback(runner["main_metric"]),
        # After the schedule has stepped, so that its state is the one that the next epoch needs.
        **_checkpoint_callbacks(cfg, run_dir, header),
        "data_wait": DataWaitCallback(),
        "speed": SpeedCallback(),
        "time_budget": None if train["max_minutes"] is None else TimeBudgetCallback(budget),
        "early_stopping": EarlyStoppingCallback(
            patience, runner["main_metric"], runner["main_mode"]
        )
        if patience
        else None,
        # What they tell is complete only now.
        "progress": ProgressCallback(),
        "metrics_file": MetricsFileCallback(run_dir),
    }
    chosen = {name: callback for name, callback in callbacks.items() if callback is not None}
    for place, callback in enumerate(chosen.values()):
        callback.order = place
    return chosen


def _panels(cfg: Mapping[str, Any]) -> Callback:
    from geopose.training.callbacks.panel import PanelCallback  # imports matplotlib, rarely needed

    return PanelCallback(channel_order(cfg["model"]), normalization(cfg["model"]))


def _checkpoint_callbacks(
    cfg: Mapping[str, Any], run_dir: Path, header: Mapping[str, Any]
) -> dict[str, CheckpointCallback]:
    kinds = {"": False} if cfg["train"]["ema"] is None else {"": False, "_ema": True}
    return {
        f"checkpoints_{entry['name']}{suffix}": CheckpointCallback(
            run_dir / f"checkpoints_{entry['name']}{suffix}",
            entry["metric"],
            entry["mode"],
            cfg["runner"]["top_k"],
            header,
            uses_ema=uses_ema,
        )
        for entry in cfg["runner"]["checkpoints"]
        for suffix, uses_ema in kinds.items()
    }
