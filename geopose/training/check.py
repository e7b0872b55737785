"""Checks a training config before anything is written: numbers, names, and what fits together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from geopose.data.targets import target_keys
from geopose.errors import InputError
from geopose.keys import INPUT_GROUND_SAMPLE_DISTANCE, INPUT_IMAGE_KEY
from geopose.losses import LossSum
from geopose.training.precision import PRECISIONS


class _Limit(NamedTuple):
    """What a number of the config must be."""

    whole: bool = False
    least: float = 0.0
    above: bool = False  # more than `least`, not just as much
    most: float = math.inf
    optional: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a value keeps to it."""
        if value is None:
            return self.optional
        kind = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bound = f"above {self.least:g}" if self.above else f"from {self.least:g}"
        if math.isfinite(self.most):
            bound += f" to {self.most:g}"
        return f"{kind} {bound}{', or null' if self.optional else ''}"


_COUNT, _POSITIVE = _Limit(whole=True, least=1), _Limit(above=True)
_LIMITS = {
    "batch_size": _COUNT,
    "seed": _Limit(whole=True),
    "train.epochs": _COUNT,
    "train.crops_per_image": _COUNT,
    "train.early_stopping": _Limit(whole=True),
    "train.max_minutes": _Limit(above=True, optional=True),
    "train.save_every_minutes": _Limit(optional=True),
    "train.max_skipped_share": _Limit(most=1.0),
    "train.ema": _Limit(above=True, most=1.0, optional=True),
    "train.loaders.train.prefetch": _COUNT,
    "train.loaders.valid.prefetch": _COUNT,
    "train.loaders.valid.batch_size": _COUNT,
    "optimizer.lr": _POSITIVE,
    "optimizer.weight_decay": _Limit(),
    "optimizer.accumulation": _COUNT,
    "optimizer.clip_grad_norm": _Limit(above=True, optional=True),
    "runner.top_k": _COUNT,
}
_GROUPS = ("model", "loss", "optimizer", "scheduler", "train", "dataset", "runner")


def check_config(cfg: Mapping[str, Any]) -> None:
    """Refuses values that would only fail later, or be ignored.

    Raises:
        InputError: names the key, the value and what is allowed.
    """
    for group in _GROUPS:
        if not isinstance(cfg.get(group), Mapping):
            raise InputError(f"{group}={cfg.get(group)}: choose one of the options of this group")
    for key, limit in _LIMITS.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if not limit.allows(value):
            raise InputError(f"{key}={value}: must be {limit}")
    if not _Limit().allows(float(cfg["train"]["mixup"]) if _is_mixup(cfg) else None):
        raise InputError(f"train.mixup={cfg['train']['mixup']}: must be a number from 0")
    precision = cfg["optimizer"]["precision"]
    if precision not in PRECISIONS:
        raise InputError(f"optimizer.precision={precision}: one of {PRECISIONS}")
    for key, value in (("resume", cfg["resume"]), ("optimizer.fp16", cfg["optimizer"]["fp16"])):
        if value not in (None, True, False):
            raise InputError(f"{key}={value}: true, false or null")
    if sum(bool(cfg[key]) for key in ("transfer", "transfer_encoder_decoder", "checkpoint")) > 1:
        raise InputError("transfer, transfer_encoder_decoder and checkpoint: give one of them")
    if not cfg["runner"]["checkpoints"]:
        raise InputError("runner.checkpoints: name at least one metric to keep checkpoints by")


def _is_mixup(cfg: Mapping[str, Any]) -> bool:
    """Whether train.mixup is a number, or the true or false of older command lines."""
    return isinstance(cfg["train"]["mixup"], int | float)


def check_metrics(cfg: Mapping[str, Any], terms: Sequence[str]) -> None:
    """Refuses metrics that validation does not compute.

    Args:
        cfg: the whole config; its runner block names the metrics.
        terms: names of the loss terms.

    Raises:
        InputError: unknown metric or mode.
    """
    known = ("loss", *terms, "metrics/mean_r2", "metrics/agl_r2", "metrics/vflow_r2")
    runner = cfg["runner"]
    watched = [(entry["metric"], entry["mode"]) for entry in runner["checkpoints"]]
    for metric, mode in [*watched, (runner["main_metric"], runner["main_mode"])]:
        if metric not in known:
            raise InputError(f"runner: unknown metric {metric}; one of {', '.join(known)}")
        if mode not in ("max", "min"):
            raise InputError(f"runner: mode {mode} of {metric}; max or min")


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


def check_loss(model: nn.Module, criterion: LossSum, inputs: Mapping[str, str]) -> None:
    """Tries the network on a small image, so that a loss that does not fit it is found now.

    Raises:
        InputError: a loss term between fields that do not exist, or wrong `runner.input_keys`.
    """
    arguments = {"image": torch.zeros(1, 3, 64, 64), "gsd": torch.full((1, 1), 0.5)}
    if dict(inputs) != {"image": INPUT_IMAGE_KEY, "gsd": INPUT_GROUND_SAMPLE_DISTANCE}:
        raise InputError(
            f"runner.input_keys={dict(inputs)}: the network takes image: {INPUT_IMAGE_KEY} and "
            f"gsd: {INPUT_GROUND_SAMPLE_DISTANCE}"
        )
    with torch.inference_mode():
        outputs = model.eval()(**arguments)
    model.train()
    criterion.check(outputs, target_keys())
