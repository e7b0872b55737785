"""What a file holds, whoever wrote it, in one form: weights by name, and the network if it says so.

In: what was read from a file. Out: a dict with `model_state_dict`, and `checkpoint_data.config` in
plain containers and today's words unless the file holds weights alone.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geopose.checkpoints.formats.facts import to_plain
from geopose.checkpoints.formats.given import GivenNetwork
from geopose.errors import InputError, RunError
from geopose.models.legacy import file_model_config

logger = logging.getLogger(__name__)

WEIGHTS = "model_state_dict"
_OTHER_NAME = "state_dict"  # under which other trainers keep the weights
_TOLD: set[tuple[str, ...]] = set()  # file and keys, so that each file is spoken of once

_Failure = type[InputError] | type[RunError]


def weights_of(content: Any, path: Path, error: _Failure = InputError) -> dict[str, Any]:
    """A file's content with its weights under `model_state_dict`, looked at closely.

    Args:
        content: a checkpoint dict, or the weights themselves.
        path: the file, for messages.
        error: what to raise.

    Raises:
        InputError: (or `error`) no weights, two sets of them, or something else among them.
    """
    if not isinstance(content, Mapping):
        raise error(f"{path}: holds a {type(content).__name__}, not a checkpoint dict")
    named = [key for key in (WEIGHTS, _OTHER_NAME) if isinstance(content.get(key), Mapping)]
    if len(named) > 1:
        raise error(f"{path}: holds both {' and '.join(named)}; save it again with one of them")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        payload: dict[str, Any] = {WEIGHTS: content}
    else:
        payload = {key: value for key, value in content.items() if key not in named}
        payload[WEIGHTS] = content[named[0]] if named else None
    _check_weights(payload[WEIGHTS], path, error)
    return payload


def _check_weights(weights: Any, path: Path, error: _Failure) -> None:
    if not weights:
        raise error(f"{path}: no {WEIGHTS} in it, so no weights to load")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise error(f"{path}: {WEIGHTS} must map parameter names to tensors")
    odd = [
        k for k, v in weights.items() if v.layout != torch.strided or v.is_quantized or v.is_meta
    ]
    if odd:
        raise error(f"{path}: {odd[0]} is not a plain dense tensor")


def says_network(payload: Mapping[str, Any]) -> bool:
    """Whether a file's content describes a network."""
    data = payload.get("checkpoint_data")
    config = data.get("config") if isinstance(data, Mapping) else None
    return isinstance(config, Mapping) and isinstance(config.get("model"), Mapping)


def check_network(payload: Mapping[str, Any], path: Path, error: _Failure = InputError) -> None:
    """Raises `error` unless a file's content describes a network."""
    if not says_network(payload):
        raise error(
            f"{path}: no checkpoint_data.config.model in it, so it does not say which network it "
            "is; name a model YAML beside it: {checkpoint: FILE, model: configs/model/NAME.yaml} "
            "in ensemble.models, or --model"
        )


def with_network(
    payload: Mapping[str, Any], path: Path, given: GivenNetwork | None = None
) -> dict[str, Any]:
    """A file's content with its config settled: its own in today's words, or the one given.

    Raises:
        InputError: neither, both, or a config that describes no network that can be built.
    """
    if given is None:
        check_network(payload, path)
        return {**payload, "checkpoint_data": settled(payload["checkpoint_data"], path)}
    if says_network(payload):
        raise InputError(
            f"{path}: says itself which network it is, and {given.source} is given as well; leave "
            "one of them out"
        )
    return {**payload, **given.facts_for(payload, path)}


def settled(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`checkpoint_data` with a plain config whose model is in today's words.

    What the published code did not read is left out, and named in one log line.

    Raises:
        InputError: a config that holds anything else than plain values, or asks for a network that
            is not built here.
    """
    config = to_plain(data["config"], f"{path}: config")
    try:
        config["model"], ignored = file_model_config(config["model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    told = (str(path), *ignored)
    if ignored and told not in _TOLD:
        _TOLD.add(told)
        logger.info("%s: keys of its config without effect: %s", path, ", ".join(ignored))
    return {**data, "config": config}
