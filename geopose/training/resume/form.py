"""Whether what a file says where a run stands has the form of what a run writes; nothing is used.

In: a checkpoint that nobody vouches for. Out: nothing, or one line that names the file and the key.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from geopose.errors import InputError

KEPT = re.compile(r"epoch_\d{4,9}\.pth")
_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
_LARGEST = 2**53
_MOST_BATCHES = 10**9


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_number(value: Any) -> bool:
    """Infinities and NaN are metrics too."""
    return type(value) is float or (type(value) is int and abs(value) <= _LARGEST)


def _is_time(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value >= 0


def _is_optional_number(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_truth(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_kept(value: Any) -> bool:
    """What a checkpoint callback wrote, and may remove: (rank, name in its own folder)."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return _is_number(value[0]) and _is_text(value[1]) and KEPT.fullmatch(value[1]) is not None


def _is_buffer(value: Any) -> bool:
    return isinstance(value, Tensor)


class _Each:
    """Any number of values of one form, in a list or under text keys."""

    def __init__(self, kind: type, form: Any) -> None:
        self.kind, self.form = kind, form


_Form = Callable[[Any], bool] | dict[str, Any] | _Each
_CALLBACKS: dict[str, _Form] = {
    "loss": {"sums": _Each(dict, _is_number), "count": _is_time},
    "optimizer": {"steps": _is_whole, "skipped": _is_whole, "faults": _is_whole},
    "time_budget": {"seconds": _is_time},
    "early_stopping": {"best": _is_number, "waited": _is_whole},
    "metrics_file": {"rows": _Each(list, _Each(dict, _is_number))},
    "checkpoints_": {"best": _is_optional_number, "kept": _Each(list, _is_kept)},
}
_STATE: _Form = {
    "epoch": _is_whole, "batch": _is_whole, "stopped_early": _is_truth, "updates": _is_whole,
    "batch_step": _is_whole, "sample_step": _is_whole, "processes": _is_whole,
    "callbacks": _Each(dict, lambda value: isinstance(value, Mapping)),
    "ranks": _Each(list, lambda value: isinstance(value, Mapping)),
    "files": _Each(dict, _is_whole),
}  # fmt: skip
_OWN_BUFFERS = _Each(list, _Each(dict, _is_buffer))
_PAYLOAD: _Form = {
    "metrics": _Each(dict, _Each(dict, _is_number)),
    "data_checksum": _is_whole,
    "versions": _Each(dict, _is_text),
    "optimizer_state_dict": lambda value: isinstance(value, Mapping),
    "scheduler_state_dict": lambda value: isinstance(value, Mapping),
    "scaler_state_dict": lambda value: isinstance(value, Mapping),
}


def check_form(payload: Mapping[str, Any], state_key: str, path: Path) -> None:
    """Looks at everything that a resumed run takes from its checkpoint, weights apart.

    Args:
        payload: as `load_checkpoint` returns it.
        state_key: under which it keeps the position.
        path: of the file, for messages.

    Raises:
        InputError: names the key that is not what a run writes.
    """
    _check(payload, _PAYLOAD, "", path)
    state = payload[state_key]
    _check(state, _STATE, state_key, path)
    if len(state["ranks"]) != state["processes"] or state["batch"] > _MOST_BATCHES:
        raise _odd(path, f"{state_key}.ranks")
    for own in state["ranks"]:
        _check_callbacks(own.get("callbacks", {}), f"{state_key}.ranks.callbacks", path)
        _check(own.get("buffers", []), _OWN_BUFFERS, f"{state_key}.ranks.buffers", path)
    _check_callbacks(state["callbacks"], f"{state_key}.callbacks", path)
    for name in state["files"]:
        if not is_plain(name):
            raise _odd(path, f"{state_key}.files")
    _check_folders(payload["checkpoint_data"]["config"], path)


def is_plain(name: str) -> bool:
    """Whether a path stays inside of the folder that it counts from."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and name.isprintable()


def _check_callbacks(states: Any, where: str, path: Path) -> None:
    if not isinstance(states, Mapping):
        raise _odd(path, where)
    for name, state in states.items():
        key = "checkpoints_" if str(name).startswith("checkpoints_") else name
        if key not in _CALLBACKS:
            raise _odd(path, f"{where}.{name}")
        _check(state, _CALLBACKS[key], f"{where}.{name}", path)


def _check_folders(config: Mapping[str, Any], path: Path) -> None:
    """A run's folders are named by its config, which comes out of the file."""
    for block in ("train", "optimizer", "scheduler", "dataset", "loss", "runner"):
        if not isinstance(config.get(block), Mapping):
            raise _odd(path, f"config.{block}")
    entries = config["runner"].get("checkpoints")
    if not isinstance(entries, list) or not entries:
        raise _odd(path, "config.runner.checkpoints")
    for entry in entries:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _odd(path, "config.runner.checkpoints")


def _check(value: Any, form: _Form, where: str, path: Path) -> None:
    if isinstance(form, dict):
        if not isinstance(value, Mapping):
            raise _odd(path, where)
        for key, inner in form.items():
            name = f"{where}.{key}" if where else key
            if key not in value:
                raise _odd(path, name, "is missing")
            _check(value[key], inner, name, path)
    elif isinstance(form, _Each):
        if not isinstance(value, Mapping if form.kind is dict else list | tuple):
            raise _odd(path, where)
        if isinstance(value, Mapping) and not all(_is_text(key) for key in value):
            raise _odd(path, where)
        for item in value.values() if isinstance(value, Mapping) else value:
            _check(item, form.form, where, path)
    elif not form(value):
        raise _odd(path, where)


def _odd(path: Path, where: str, what: str = "is not what a run writes") -> InputError:
    return InputError(
        f"{path}: {where[:80]} in it {what}; resume from previous.pth, or start from its weights "
        "with checkpoint= and another experiment=DIR"
    )
