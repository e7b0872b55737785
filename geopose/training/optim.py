"""Optimizer and learning-rate schedule of a run, from their config blocks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from geopose.errors import InputError
from geopose.schema.numbers import is_number

Schedule = Callable[[float], float]

# torch's, which update all weights in one pass if told to, on CPUs and CUDA alike.
_FUSED = {"adam", "adamw", "sgd", "momentum", "nesterov"}


def parameter_groups(model: nn.Module, cfg: Mapping[str, Any], lr: float) -> list[dict[str, Any]]:
    """Parameters in groups of equal rate and decay.

    Args:
        model: parameters without gradient are left out.
        cfg: the optimizer block: weight_decay, weight_decay_on_bias, layerwise.
        lr: the rate of parameters that `layerwise` does not name.

    Raises:
        InputError: `layerwise` names what the model does not have, or its factor is no number >= 0.
    """
    layerwise = cfg["layerwise"]
    _check_layerwise(layerwise, [name for name, _ in model.named_parameters()])
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = _factor(layerwise, name)
        decays = cfg["weight_decay_on_bias"] or parameter.ndim > 1
        key = (lr * factor, cfg["weight_decay"] if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": group_lr, "weight_decay": decay}
        for (group_lr, decay), parameters in groups.items()
    ]


def _is_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _factor(layerwise: Mapping[str, float], name: str) -> float:
    """That of the innermost named layer around a parameter; 1 where there is none."""
    layers = [layer for layer in layerwise if _is_in(name, layer)]
    return layerwise[max(layers, key=len)] if layers else 1.0


def _check_layerwise(layerwise: Mapping[str, Any], names: list[str]) -> None:
    for layer, factor in layerwise.items():
        if not is_number(factor) or not factor >= 0:
            raise InputError(f"optimizer.layerwise.{layer}={factor}: must be a number from 0")
        if not any(_is_in(name, layer) for name in names):
            raise InputError(f"optimizer.layerwise: this model has no layer {layer}")


def build_optimizer(model: nn.Module, cfg: Mapping[str, Any], processes: int) -> Optimizer:
    """The optimizer named in `cfg`; its rate is multiplied by the number of processes.

    Raises:
        InputError: unknown name, an argument that this optimizer does not take, a package or a
            GPU that it needs and that is not here, or a need of second derivatives.
    """
    name = cfg["name"].removeprefix("lookahead_")
    if name not in list_optimizers():
        raise InputError(f"optimizer.name={cfg['name']}: unknown; one of {list_optimizers()}")
    if get_optimizer_info(name).second_order:
        raise InputError(
            f"optimizer.name={cfg['name']}: needs second derivatives, which training does not "
            "compute; choose another"
        )
    lr = cfg["lr"] * processes
    kwargs = dict(cfg["kwargs"])
    if name in _FUSED and not (kwargs.get("foreach") or kwargs.get("differentiable")):
        kwargs.setdefault("fused", True)
    try:
        return create_optimizer_v2(
            parameter_groups(model, cfg, lr),
            opt=cfg["name"],
            lr=lr,
            weight_decay=cfg["weight_decay"],
            **kwargs,
        )
    except (TypeError, RuntimeError) as error:
        raise InputError(f"optimizer.kwargs of {cfg['name']}: {error}") from error
    except (AssertionError, ImportError) as error:  # a package or a GPU that is not here
        raise InputError(f"optimizer.name={cfg['name']}: {error}") from error


def _cosine(progress: float, low: float) -> float:
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def _flat_cosine(cfg: Mapping[str, Any], lr: float) -> Schedule:
    flat, low = cfg.get("flat", 0.0), cfg["min_lr"] / lr
    return lambda progress: _cosine((progress - flat) / (1.0 - flat), low)


def _one_cycle(cfg: Mapping[str, Any], lr: float) -> Schedule:
    start, end = cfg["start_lr"] / lr, cfg["end_lr"] / lr
    warmup, decay = cfg["warmup"], cfg["decay"]

    def factor(progress: float) -> float:
        if progress < warmup:
            return start + (1.0 - start) * progress / warmup
        return _cosine((progress - (1.0 - decay)) / decay, end)

    return factor


def _multi_step(cfg: Mapping[str, Any], lr: float) -> Schedule:
    del lr  # steps are relative
    warmup = cfg["warmup"]

    def factor(progress: float) -> float:
        rise = min(1.0, 0.01 + progress / warmup) if warmup > 0 else 1.0
        return rise * cfg["gamma"] ** sum(progress >= share for share in cfg["milestones"])

    return factor


def _constant(cfg: Mapping[str, Any], lr: float) -> Schedule:
    del cfg, lr
    return lambda progress: 1.0


_SCHEDULES: dict[str, Callable[[Mapping[str, Any], float], Schedule]] = {
    "cos": _flat_cosine,
    "flat_cos": _flat_cosine,
    "1cycle": _one_cycle,
    "multistep": _multi_step,
    "constant": _constant,
}


def _checked(name: str, cfg: Mapping[str, Any], lr: float) -> Schedule:
    """The schedule, tried out at a few points so that a bad number is found before the run."""
    for key in ("flat", "warmup", "decay"):
        value = cfg.get(key, 0.5)
        if not is_number(value) or not 0 <= value <= 1:
            raise InputError(f"scheduler.{key}={value}: a share of the run, 0 to 1")
    try:
        factor = _SCHEDULES[name](cfg, lr)
        for progress in (0.0, 0.3, 0.6, 1.0):
            if not factor(progress) >= 0:
                raise ValueError(f"a negative rate at {progress:.0%} of the run")
    except (TypeError, ValueError, ZeroDivisionError, KeyError) as error:
        raise InputError(f"scheduler {name}: not possible with these values ({error})") from error
    return factor


class ShareSchedule:
    """Rates as a function of the number of updates that the run has come by, skipped ones included.

    torch's LambdaLR does the same, but takes a run whose first update is skipped (a loss that is no
    number, an overflow of fp16) for one that steps in the wrong order, and warns of it.

    Args:
        optimizer: what it drives; its groups keep their ratio to each other.
        factor: of the rates that the optimizer starts from, after so many updates.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer, self._factor = optimizer, factor
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        self._updates = 0
        self._set_rates()

    def step(self) -> None:
        """Sets the rates of the next update; called after each, whether it was done or skipped."""
        self._updates += 1
        self._set_rates()

    def _set_rates(self) -> None:
        factor = self._factor(self._updates)
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def state_dict(self) -> dict[str, Any]:
        """In the words of torch's schedulers, which older checkpoints hold."""
        return {"last_epoch": self._updates, "base_lrs": list(self._base_rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; the rates as they are come with the optimizer's state."""
        self._updates, self._base_rates = state["last_epoch"], list(state["base_lrs"])


def build_scheduler(
    optimizer: Optimizer,
    cfg: Mapping[str, Any],
    progress: Callable[[int], float],
    lr: float,
    mode: str,
) -> ShareSchedule | ReduceLROnPlateau:
    """The schedule named in `cfg`.

    Args:
        optimizer: what it drives; groups keep their ratio to each other.
        cfg: the scheduler block; rates in it are absolute.
        progress: share of the run that is done after a number of updates, 0..1: schedules are
            functions of it, so that they end with the run, however many updates were skipped.
        lr: the rate that the optimizer starts from (already multiplied by the processes).
        mode: `max` or `min`: what is better in the metric that `plateau` watches.

    Returns:
        ShareSchedule, to be stepped after every update, or ReduceLROnPlateau, to be stepped
        with the metric after every epoch.

    Raises:
        InputError: unknown name, or a rate in it above the optimizer's.
    """
    name = cfg["name"]
    for key in ("min_lr", "start_lr", "end_lr"):
        value = cfg.get(key, 0.0)
        if not is_number(value):
            raise InputError(f"scheduler.{key}={value}: a number")
        if value > lr:
            raise InputError(f"scheduler.{key}={cfg[key]} is above the optimizer's rate {lr}")
    if name == "plateau":
        return ReduceLROnPlateau(
            optimizer,
            mode=mode,  # type: ignore[arg-type]
            factor=cfg["factor"],
            patience=cfg["patience"],
            min_lr=[cfg["min_lr"] * group["lr"] / lr for group in optimizer.param_groups],
        )
    if name not in _SCHEDULES:
        raise InputError(f"scheduler.name={name}: unknown; one of {['plateau', *_SCHEDULES]}")
    factor = _checked(name, cfg, lr)
    return ShareSchedule(optimizer, lambda step: factor(progress(step)))
