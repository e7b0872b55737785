"""Whether a checkpoint's tensors are those of the run that is to go on: names, shapes, numbers.

What computes with them trusts their shapes: a fused update of an optimizer reads what lies behind a
state that is too short.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geopose.checkpoints.weights import check_fit
from geopose.errors import InputError

BuildOptimizer = Callable[[nn.Module], Optimizer]
_STEPS = 12  # after as many updates every optimizer has all the state that it will have
_RATES = ("lr", "initial_lr")


def check_fits(
    payload: Mapping[str, Any],
    state: Mapping[str, Any],
    networks: Sequence[nn.Module],
    optimizer: Optimizer,
    build: BuildOptimizer,
    path: Path,
) -> None:
    """Compares all tensors of a checkpoint with what they will be put into.

    Args:
        payload: of the checkpoint.
        state: the part of it that says where the run stands.
        networks: the network and, if there is one, its average.
        optimizer: just made.
        build: makes such an optimizer for another network.
        path: of the file, for messages.

    Raises:
        InputError: names the file and what does not fit.
    """
    for network, key in zip(networks, ("model_state_dict", "ema_state_dict"), strict=False):
        weights = payload.get(key)
        if not isinstance(weights, Mapping) or not all(map(_is_dense, weights.values())):
            raise InputError(f"{path}: {key} in it is not a network's weights")
        check_fit(network, weights, f"{path}: {key}")
    for own in state["ranks"]:
        for network, values in zip(networks, own.get("buffers", []), strict=False):
            _check_buffers(network, values, path)
    _check_optimizer(payload["optimizer_state_dict"], optimizer, build, path)


def check_driver(saved: Mapping[str, Any], own: Mapping[str, Any], name: str, path: Path) -> None:
    """Compares the state of a schedule or of a gradient scaler with that of a new one.

    Args:
        saved: out of the file; may lack what an older version did not have.
        own: `state_dict()` of the new one.
        name: of the key in the file.
        path: of the file, for messages.

    Raises:
        InputError: names the file and the key.
    """
    for key, value in saved.items():
        if own and (key not in own or not _is_same_kind(value, own[key])):
            raise InputError(
                f"{path}: {key!r:.40} in {name} is not what a run writes; start from its weights "
                "with checkpoint= and another experiment=DIR"
            )


def _is_same_kind(saved: Any, own: Any) -> bool:
    if isinstance(own, list):
        same = isinstance(saved, list) and len(saved) == len(own)
        return same and all(map(_is_same_kind, saved, own))
    if isinstance(own, bool) or own is None:
        return type(saved) is type(own)
    if isinstance(own, int):
        return type(saved) in (int, float) and abs(saved) < 2**53
    return type(saved) in (int, float) if isinstance(own, float) else saved == own


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and _is_plain(value)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _check_buffers(network: nn.Module, values: Mapping[str, Tensor], path: Path) -> None:
    for name, buffer in network.named_buffers():
        value = values.get(name)
        if value is None or not _is_plain(value) or value.shape != buffer.shape:
            raise InputError(f"{path}: the buffer {name} in it does not fit the model")


def _check_optimizer(
    saved: Mapping[str, Any], optimizer: Optimizer, build: BuildOptimizer, path: Path
) -> None:
    groups, state = saved.get("param_groups"), saved.get("state")
    own = optimizer.param_groups
    if not isinstance(groups, list) or not isinstance(state, Mapping) or len(groups) != len(own):
        raise _unfit(path, "other groups of parameters")
    parameters = [parameter for group in own for parameter in group["params"]]
    numbers = [n for group in groups if isinstance(group, Mapping) for n in _listed(group)]
    if numbers != list(range(len(parameters))):
        raise _unfit(path, "other groups of parameters")
    for group, present in zip(groups, own, strict=True):
        for key, value in present.items():
            if key != "params" and key in group and not _is_alike(group[key], value):
                raise _unfit(path, f"{key} in it is {group[key]!r:.40}")
        if any(not 0 <= group.get(key, 0) < math.inf for key in _RATES):
            raise _unfit(path, "a rate in it is none")
    forms = _forms(build)
    for number, values in state.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise _unfit(path, f"state of a parameter {number!r:.40}, which is not there")
        _check_state(values, parameters[number], forms, path)


def _listed(group: Mapping[str, Any]) -> list[Any]:
    numbers = group.get("params")
    return numbers if isinstance(numbers, list) else [None]


def _is_alike(saved: Any, own: Any) -> bool:
    """A setting of a group: numbers may have moved, all else says how the optimizer computes."""
    if isinstance(own, bool) or own is None or isinstance(own, str):
        return type(saved) in (type(own), bool, type(None))  # not taken over, see load_optimizer
    if isinstance(own, int | float):
        return type(saved) in (int, float) and math.isfinite(saved)
    if isinstance(own, list | tuple):
        return isinstance(saved, list | tuple) and list(saved) == list(own)
    return _is_dense(saved) and saved.numel() == 1


class _Forms(NamedTuple):
    """Names in the state of an optimizer: after one update, after many, and those of tensors that
    have another shape than their parameter."""

    first: set[str]
    all: set[str]
    factored: set[str]


def _forms(build: BuildOptimizer) -> _Forms | None:
    """Found out on two small parameters, as it is written down nowhere; None = cannot be."""
    small = nn.Conv2d(3, 5, 2)
    names: list[set[str]] = []
    try:
        optimizer = build(small)
        for _ in range(_STEPS):
            for parameter in small.parameters():
                parameter.grad = torch.full_like(parameter, 0.01)
            optimizer.step()
            names.append(set.intersection(*(set(values) for values in optimizer.state.values())))
        every = {name for values in optimizer.state.values() for name in values}
        factored = {
            name
            for parameter, values in optimizer.state.items()
            for name, value in values.items()
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape
        }
    except Exception:  # whatever an optimizer that wants a GPU raises
        return None
    return _Forms(names[0], every, factored)


def _check_state(values: Any, parameter: Tensor, forms: _Forms | None, path: Path) -> None:
    """The state of one parameter: as large as that, or single numbers."""
    if not isinstance(values, Mapping) or not all(type(name) is str for name in values):
        raise _unfit(path, "its state is none")
    if values and forms is not None and not forms.first <= set(values) <= forms.all:
        odd = sorted((forms.first - set(values)) | (set(values) - forms.all))[0]
        raise _unfit(path, f"{odd!r:.40} is missing or unknown in its state")
    for name, value in values.items():
        if isinstance(value, Tensor):
            factored = forms is None or name in forms.factored
            fits = _is_plain(value) and _fits(name, value, parameter, factored)
        else:
            fits = value is None or (type(value) in (bool, int, float) and _counts(value))
        if not fits:
            raise _unfit(path, f"{name[:40]!r} in it is not of the shape of its parameter")


def _fits(name: str, value: Tensor, parameter: Tensor, factored: bool) -> bool:
    if value.shape == parameter.shape and name != "step":
        return value.is_floating_point() == parameter.is_floating_point()
    if factored and value.numel() > 1:
        return value.ndim <= parameter.ndim and value.numel() <= parameter.numel()
    return value.numel() == 1 and value.ndim <= 1 and _counts(value.item())


def _counts(value: float) -> bool:
    return isinstance(value, int | float) and 0 <= value < 2**53


def _unfit(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: optimizer_state_dict does not fit the optimizer of this run ({what}); start from "
        "its weights with checkpoint= and another experiment=DIR"
    )
