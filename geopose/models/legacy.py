"""What published checkpoints say, in today's words: parameter names, and keys of model configs.

Parameters are renamed, nothing else. Configs may use the names of pytorch-toolbelt's arguments and
hold Hydra's own keys; each such spelling is listed here, and anything else that nobody knows is
refused by whoever builds the part.

A config with the network nested under `config` is in the published form, where some words mean
something else: constructors had other defaults, keys that nobody read passed unnoticed, and a few
names stood for other networks than they do now. It leaves here in today's words, with the published
defaults written out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from geopose.construct import TARGET, as_mapping
from geopose.errors import InputError

Value = TypeVar("Value")
_DECODER_NORM = re.compile(r"^(decoder\.blocks\.\d+)\.abn(\d)\.bn\.")
# `ir_unet` blocks before they were timm's.
_INVERTED = re.compile(r"^(decoder\.blocks\.\d+\.[01])\.(conv|norm)(\d)\.")
_INVERTED_CONVS = {"1": "conv_pw", "2": "conv_dw", "3": "conv_pwl"}

# What data-parallel and compiled networks put before every name.
_WRAPPERS = ("module.", "_orig_mod.")

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

_LABELS = {"slug", "channel_order", "normalization"}  # may also stand beside `config`
_PUBLISHED_PARTS = ("encoder", "decoder", "agl_head", "orientation_head")
_PUBLISHED_DECODER_KEYS = ("channels", "block_type", "activation", "upsample")
_HEADS = "geopose.models.heads."
# Of the published constructors, where ours differ.
_PUBLISHED_DEFAULTS: dict[str, dict[str, Any]] = {
    "SimpleAGLHead": {"embedding_size": 64, "dropout_rate": 0.0, "activation": "relu"},
    "AGLHead": {"num_upsample_blocks": 1, "dropout_rate": 0.0, "activation": "relu"},
    "BasicOrientationHead": {"dropout_rate": 0.0, "activation": "relu"},
}
_PUBLISHED_WITHOUT_EFFECT = {"AGLHead": {"embedding_size"}}
# Published networks that nothing here builds, though some have a namesake.
_NOT_BUILT = {
    "OnlyAGLHead": "the height branch of SimpleAGLHead",
    "HyperColumnAGLHead": "two convolutions for each decoder map",
    "BasicOrientationScaleHead": "two branches of unpadded 3x3 convolutions",
    "dc_unet": "a block of dilated convolutions",
}


def published_to_current(name: str) -> str:
    """Today's name of a published parameter; a name of today stays as it is."""
    name = _DECODER_NORM.sub(r"\1.norm\2.", name)
    if inverted := _INVERTED.match(name):
        block, kind, number = inverted.groups()
        part = _INVERTED_CONVS.get(number, "conv") if kind == "conv" else f"bn{number}"
        name = f"{block}.{part}.{name[inverted.end() :]}"
    return name


def has_published_names(names: Iterable[str]) -> bool:
    """Whether parameters are called as only the published trainer called them."""
    return any(published_to_current(name) != name for name in unwrapped(names))


def unwrapped(names: Iterable[str]) -> list[str]:
    """Parameter names without what data-parallel and compiled networks put before all of them.

    Raises:
        InputError: it stands before some of them only.
    """
    stripped = list(names)
    while stripped:
        wrapper = next((w for w in _WRAPPERS if any(n.startswith(w) for n in stripped)), None)
        if wrapper is None:
            break
        bare = next((name for name in stripped if not name.startswith(wrapper)), None)
        if bare is not None:
            wrapped = next(name for name in stripped if name.startswith(wrapper))
            raise InputError(
                f"only some parameter names begin with {wrapper!r}: {wrapped} does, {bare} does "
                "not; save the weights of one network"
            )
        stripped = [name.removeprefix(wrapper) for name in stripped]
    return stripped


def rename_state_dict(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict under today's names, every entry exactly once.

    Raises:
        InputError: two entries would get the same name, or only some have a wrapper's prefix.
    """
    names = [published_to_current(name) for name in unwrapped(state)]
    renamed = dict(zip(names, state.values(), strict=True))
    if len(renamed) != len(state):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two parameters of the checkpoint are both called {twice}")
    return renamed


def current_model_config(model_config: Any) -> dict[str, Any]:
    """The `model` node of a training config, flat and in today's words.

    Args:
        model_config: mapping with encoder, decoder, agl_head and orientation_head, either at its
            top or, in the published form, under `config`; `_target_` may stand at either place.

    Returns:
        A new dict; what it does not know is still in it, for whoever builds the part to refuse.

    Raises:
        InputError: not a mapping, a key given twice under two names, a value that would ask for
            another network, or, in the published form, a key without effect.
    """
    model, without_effect = file_model_config(model_config)
    if without_effect:
        where, _, key = without_effect[0].rpartition(".")
        raise InputError(f"{where}: unknown key {key!r}: the published form does not read it")
    return model


def file_model_config(model_config: Any) -> tuple[dict[str, Any], list[str]]:
    """As `current_model_config`, for the config in a checkpoint file, whose network is built.

    Returns:
        The model, and which keys were left out because the published code did not read them; the
        weights, which must fit exactly, say whether the network is the right one all the same.

    Raises:
        InputError: as `current_model_config`, but for keys without effect.
    """
    model = as_mapping(model_config, "model")
    if "config" in model:
        return _from_published(model)
    parts = _current_keys(model, "", "model")
    for name in _PUBLISHED_PARTS:
        if isinstance(parts.get(name), Mapping):
            parts[name] = _current_keys(parts[name], name, f"model.{name}")
    return parts, []


def _from_published(model: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The published form as the published code understood it, and the keys it passed over."""
    where = "model.config"
    nested = as_mapping(model.pop("config"), where)
    beside = _current_keys(model, "", "model")
    misplaced = [key for key in beside if key not in {TARGET, *_LABELS}]
    if misplaced:
        raise InputError(f"model: {misplaced[0]!r} stands beside 'config', it belongs into it")
    labels = {key: nested[key] for key in (TARGET, *_LABELS) if key in nested}
    parts = {key: nested[key] for key in _PUBLISHED_PARTS if key in nested}
    read = {*labels, *parts, "activation", *_HYDRA_KEYS}
    unread = [f"{where}.{key}" for key in nested if key not in read]
    for name, part in parts.items():
        if isinstance(part, Mapping):
            place = f"{where}.{name}"
            if name == "decoder":
                default = {"activation": nested["activation"]} if "activation" in nested else {}
                parts[name], more = _published_decoder(part, default, place)
            else:
                parts[name], more = _published_constructor(_current_keys(part, name, place), place)
            unread += more
    return {**labels, **beside, **parts}, unread


def _published_decoder(
    config: Mapping[str, Any], default: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[str]]:
    kind = config.get("block_type")
    if isinstance(kind, str) and kind in _NOT_BUILT:
        raise InputError(f"{where}.block_type: {kind} ({_NOT_BUILT[kind]}) is not built here")
    read = {key: config[key] for key in _PUBLISHED_DECODER_KEYS if key in config}
    unread = [f"{where}.{key}" for key in config if key not in {*read, *_HYDRA_KEYS}]
    return {**default, **read}, unread


def _published_constructor(config: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """An encoder or head; arguments that its constructor does not take are left in."""
    name = str(config.get(TARGET, "")).removeprefix(_HEADS)
    if name in _NOT_BUILT:
        raise InputError(
            f"{where}: the published {name} ({_NOT_BUILT[name]}) is not built here; the {name} of "
            "today is another network"
        )
    idle = [key for key in config if key in _PUBLISHED_WITHOUT_EFFECT.get(name, ())]
    kept = {key: value for key, value in config.items() if key not in idle}
    return {**_PUBLISHED_DEFAULTS.get(name, {}), **kept}, [f"{where}.{key}" for key in idle]


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
