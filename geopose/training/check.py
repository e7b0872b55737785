"""Checks a training config before anything is written: keys and values, and what fits together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from geopose.data.checks.numbers import gsd_problem
from geopose.data.targets import target_keys
from geopose.errors import InputError
from geopose.losses.total import LossSum
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
    _check_common_gsd(cfg["train"])
    return cfg


def _check_common_gsd(train: Mapping[str, Any]) -> None:
    gsd_m, downsample = train["gsd_m"], train["downsample"]
    if gsd_m is None:
        return
    if problem := gsd_problem(gsd_m):
        raise InputError(f"train.gsd_m is {problem}")
    if downsample > 1:
        raise InputError(
            f"train.gsd_m={gsd_m:g} and train.downsample={downsample}: the network sees pixels of "
            "train.gsd_m; set train.downsample=1"
        )


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


def check_batch_norm(model: nn.Module, cfg: Mapping[str, Any], samples: int) -> None:
    """Refuses batches of which the encoder's coarsest map has one pixel: it has no deviation.

    Args:
        model: a network with `encoder` and `stride`.
        cfg: the whole config.
        samples: of an epoch, for one process.

    Raises:
        InputError: names the two keys.
    """
    side, batch_size = cfg["train"]["crop_size"], min(cfg["batch_size"], samples)
    encoder, stride = getattr(model, "encoder", None), getattr(model, "stride", 0)
    if side is None or encoder is None or not stride or batch_size * (-(-side // stride)) ** 2 > 1:
        return
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules()):
        raise InputError(
            f"batch_size={batch_size} and train.crop_size={side}: BatchNorm would see one value "
            f"of each channel; set train.crop_size above {stride}, or batch_size=2 or more"
        )


def fitting_loss(model: nn.Module, criterion: LossSum) -> LossSum:
    """Tries the network on a small image, so that a loss that does not fit it is found now.

    Returns:
        The loss without the terms that are only for networks with further outputs.

    Raises:
        InputError: a loss term between fields that do not exist.
    """
    with torch.inference_mode():
        outputs = model.eval()(torch.zeros(1, 3, 64, 64), torch.full((1, 1), 0.5))
    model.train()
    return criterion.fitting(outputs, target_keys())
