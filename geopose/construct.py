"""Builds objects that a config names, from an allow-list only: nothing else is ever imported.

A config reads `{_target_: dotted.path, argument: value, ...}`. The dotted path is looked up in a
table of constructors; it is never handed to the import system.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geopose.errors import InputError

TARGET = "_target_"


def plain(config: Any) -> Any:
    """OmegaConf nodes as plain dicts and lists with interpolations resolved; others unchanged."""
    if isinstance(config, DictConfig | ListConfig):
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise InputError(f"config cannot be resolved: {error}") from error
    return config


def as_mapping(config: Any, where: str) -> dict[str, Any]:
    """`config` as a new plain dict with string keys; InputError naming `where` if it is not one."""
    config = plain(config)
    if not isinstance(config, Mapping):
        raise InputError(f"{where}: expected a mapping, got {config!r}")
    return {str(key): value for key, value in config.items()}


def check_keys(
    config: Mapping[str, Any], allowed: set[str], required: set[str], where: str
) -> None:
    """Refuses unknown and missing keys by name."""
    unknown = sorted(set(config) - allowed)
    if unknown:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r} (known: {', '.join(sorted(allowed))})"
        )
    missing = sorted(required - set(config))
    if missing:
        raise InputError(f"{where}: missing key {missing[0]!r}")


def arguments_of(constructor: Callable[..., Any]) -> tuple[set[str], set[str]]:
    """(all, required) names of the keyword arguments that `constructor` takes."""
    parameters = inspect.signature(constructor).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name for p in named}, {p.name for p in named if p.default is p.empty}


def split_target(
    config: Any, constructors: Mapping[str, Callable[..., Any]], where: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The constructor that `config` names, and its arguments.

    Raises:
        InputError: no `_target_`, or one that is not in `constructors`.
    """
    arguments = as_mapping(config, where)
    if TARGET not in arguments:
        raise InputError(f"{where}: missing key '{TARGET}'")
    target = arguments.pop(TARGET)
    if not isinstance(target, str) or target not in constructors:
        known = ", ".join(sorted(constructors))
        raise InputError(f"{where}: {TARGET} {target!r} is not allowed (allowed: {known})")
    return constructors[target], arguments


def construct(
    config: Any, constructors: Mapping[str, Callable[..., Any]], where: str, **extra: Any
) -> Any:
    """Calls the allow-listed constructor named by `config` with its arguments.

    Args:
        config: mapping with `_target_` and keyword arguments.
        constructors: what may be built, by dotted path.
        where: how error messages name this config, e.g. `model.encoder`.
        extra: arguments that the program supplies; a config must not give them.

    Raises:
        InputError: target not allowed, unknown or missing argument, or a value it refuses.
    """
    constructor, arguments = split_target(config, constructors, where)
    allowed, required = arguments_of(constructor)
    check_keys(arguments, allowed - set(extra), required - set(extra), where)
    try:
        return constructor(**extra, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error
