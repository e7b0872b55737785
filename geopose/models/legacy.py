"""What published checkpoints say, in today's words: parameter names, and keys of model configs.

Parameters are renamed, nothing else. Configs may use the names of pytorch-toolbelt's arguments,
nest the network under `config`, and hold Hydra's own keys; each such spelling is listed here, and
anything else that nobody knows is refused by whoever builds the part.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from geopose.construct import as_mapping
from geopose.errors import InputError

Value = TypeVar("Value")
_DECODER_NORM = re.compile(r"^(decoder\.blocks\.\d+)\.abn(\d)\.bn\.")
# `ir_unet` blocks before they were timm's.
_INVERTED = re.compile(r"^(decoder\.blocks\.\d+\.[01])\.(conv|norm)(\d)\.")
_INVERTED_CONVS = {"1": "conv_pw", "2": "conv_dw", "3": "conv_pwl"}

_HYDRA_KEYS = {"_recursive_", "_convert_"}  # how Hydra would call a constructor
_HEAD = {"dropout": "dropout_rate"}
_SYNONYMS: dict[str, dict[str, str]] = {
    "decoder": {
        "unet_block": "block_type",
        "upsample_block": "upsample",
        "decoder_features": "channels",
        "out_channels": "channels",
    },
    "agl_head": _HEAD,
    "orientation_head": _HEAD,
}
# Keys that change nothing as long as they say one of these; any other value is refused.
_IN_PLACE = {"inplace": (True, False)}
_WITHOUT_EFFECT: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {"num_channels": (3,), "in_channels": (3,)},
    "encoder": {"first_conv_stride_one": (False,)},
    "decoder": {"normalization": ("batch_norm",), **_IN_PLACE},
    "agl_head": _IN_PLACE,
    "orientation_head": _IN_PLACE,
}


def published_to_current(name: str) -> str:
    """Today's name of a published parameter; a name of today stays as it is."""
    name = _DECODER_NORM.sub(r"\1.norm\2.", name)
    if inverted := _INVERTED.match(name):
        block, kind, number = inverted.groups()
        part = _INVERTED_CONVS.get(number, "conv") if kind == "conv" else f"bn{number}"
        name = f"{block}.{part}.{name[inverted.end() :]}"
    return name


def rename_state_dict(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict under today's names, every entry exactly once.

    Raises:
        InputError: two entries would get the same name.
    """
    renamed = {published_to_current(name): value for name, value in state.items()}
    if len(renamed) != len(state):
        names = [published_to_current(name) for name in state]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two parameters of the checkpoint are both called {twice}")
    return renamed


def current_model_config(model_config: Any) -> dict[str, Any]:
    """The `model` node of any training config, flat and in today's words.

    Args:
        model_config: mapping with encoder, decoder, agl_head and orientation_head, either at its
            top or under `config`; `_target_` may stand at either place.

    Returns:
        A new dict; what it does not know is still in it.

    Raises:
        InputError: not a mapping, a key given twice under two names, or a value that would ask for
            another network.
    """
    model = as_mapping(model_config, "model")
    nested = as_mapping(model.pop("config", {}), "model.config")
    parts = _current_keys({**nested, **model}, "", "model")
    for name in _WITHOUT_EFFECT:
        if isinstance(parts.get(name), Mapping):
            parts[name] = _current_keys(parts[name], name, f"model.{name}")
    return parts


def _current_keys(config: Mapping[str, Any], part: str, where: str) -> dict[str, Any]:
    """One mapping without keys that mean nothing here, and with synonyms replaced."""
    synonyms, fixed = _SYNONYMS.get(part, {}), _WITHOUT_EFFECT[part]
    current: dict[str, Any] = {}
    for key, value in config.items():
        if key in fixed and value not in fixed[key]:
            raise InputError(f"{where}.{key}: only {fixed[key][0]!r} is possible, got {value!r}")
        if key in fixed or key in _HYDRA_KEYS:
            continue
        name = synonyms.get(key, key)
        if name in current:
            raise InputError(f"{where}: {key!r} and another key both give {name!r}")
        current[name] = value
    return current
