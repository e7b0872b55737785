"""Checks a training config before anything is written: keys and values, and what fits together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from geopose.data.targets import target_keys
from geopose.errors import InputError
from geopose.losses import LossSum
from geopose.schema.check import checked
from geopose.schema.old_keys import without_old_keys
from geopose.training.config import TrainingConfig


def check_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every value of the type that its key has, without keys that have gone.

    Raises:
        InputError: a value that would only fail later, or be ignored; names the key, the value and
            what is allowed.
    """
    cfg = without_old_keys(cfg)
    train = cfg.get("train")
    if isinstance(train, Mapping) and isinstance(train.get("mixup"), bool):
        cfg["train"] = {**train, "mixup": float(train["mixup"])}  # of older command lines
    cfg = checked(TrainingConfig, cfg)
    if sum(bool(cfg[key]) for key in ("transfer", "transfer_encoder_decoder", "checkpoint")) > 1:
        raise InputError("transfer, transfer_encoder_decoder and checkpoint: give one of them")
    return cfg


def check_metrics(cfg: Mapping[str, Any], terms: Sequence[str]) -> None:
    """Refuses metrics that validation does not compute.

    Args:
        cfg: the whole config; its runner block names the metrics.
        terms: names of the loss terms.

    Raises:
        InputError: unknown metric.
    """
    known = ("loss", *terms, "metrics/mean_r2", "metrics/agl_r2", "metrics/vflow_r2")
    runner = cfg["runner"]
    for metric in (*(entry["metric"] for entry in runner["checkpoints"]), runner["main_metric"]):
        if metric not in known:
            raise InputError(f"runner: unknown metric {metric}; one of {', '.join(known)}")


def check_loss(model: nn.Module, criterion: LossSum) -> None:
    """Tries the network on a small image, so that a loss that does not fit it is found now.

    Raises:
        InputError: a loss term between fields that do not exist.
    """
    with torch.inference_mode():
        outputs = model.eval()(torch.zeros(1, 3, 64, 64), torch.full((1, 1), 0.5))
    model.train()
    criterion.check(outputs, target_keys())
