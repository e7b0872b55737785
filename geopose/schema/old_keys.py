"""Keys of older training configs that said the only thing there was to say.

Configs, command lines and checkpoints that hold them are read as before; another value is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from geopose.errors import InputError
from geopose.keys import INPUT_GROUND_SAMPLE_DISTANCE, INPUT_IMAGE_KEY

# {dotted key: what it said}; `input_key` is how the published configs spell the inputs.
OLD_KEYS: dict[str, Any] = {
    "loss.aggregation": "sum",
    "runner.input_keys": {"image": INPUT_IMAGE_KEY, "gsd": INPUT_GROUND_SAMPLE_DISTANCE},
    "runner.input_key": [INPUT_IMAGE_KEY, INPUT_GROUND_SAMPLE_DISTANCE],
    "optimizer.encoder_lr_factor": 1.0,
}
_HINTS = {"optimizer.encoder_lr_factor": "; give optimizer.layerwise={encoder: FACTOR}"}


def without_old_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that have gone.

    Raises:
        InputError: one of them has another value than the one that there was.
    """
    result = dict(cfg)
    for dotted, only in OLD_KEYS.items():
        group, _, name = dotted.partition(".")
        block = result.get(group)
        if isinstance(block, Mapping) and name in block:
            _check(dotted, block[name], only)
            result[group] = {key: value for key, value in block.items() if key != name}
    return result


def without_old_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command (`key=value` and others) without keys that have gone.

    Raises:
        InputError: one of them has another value than the one that there was.
    """
    return [argument for argument in arguments if not _is_old(argument)]


def _is_old(argument: str) -> bool:
    found = re.fullmatch(r"\+{0,2}([\w.]+)=(.*)", argument, re.DOTALL)
    if found is None:
        return False
    for dotted, only in _values_inside(OLD_KEYS):
        if found[1] == dotted:
            try:
                value = yaml.safe_load(found[2])
            except yaml.YAMLError:
                value = found[2]
            _check(dotted, value, only)
            return True
    return False


def _values_inside(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every key of nested mappings."""
    for name, value in values.items():
        yield above + name, value
        if isinstance(value, Mapping):
            yield from _values_inside(value, f"{above}{name}.")


def _check(dotted: str, value: Any, only: Any) -> None:
    if value != only:
        raise InputError(
            f"{dotted}={value}: this key has gone, as {only} is all that it could say; leave it out"
            f"{_HINTS.get(dotted, '')}"
        )
