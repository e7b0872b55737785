"""Hydra's arguments and errors: options stand anywhere, an error is one line with a remedy."""

import re
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

from geopose.errors import InputError, one_line

_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun",
}  # fmt: skip
_LONGEST = 300


def options_first(arguments: Sequence[str]) -> list[str]:
    """Arguments with the options before the overrides: behind them Hydra does not know `-m`.

    Raises:
        InputError: an option that Hydra does not have, or without its value.
    """
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in _WITH_VALUE:
            options += [value for value in [next(rest, None)] if value is not None]
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    parser.parse_args([*options, *overrides])
    return [*options, *overrides]


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}; see train.py --help")


def in_words(error: Exception) -> str:
    """What Hydra or OmegaConf found wrong with the arguments, on one line."""
    if isinstance(error, OverrideParseException):
        key, is_one, value = error.override.partition("=")
        remedy = f"put the value in quotes: '{key}=\"{value}\"'" if is_one else "give KEY=VALUE"
        return f"{error.override}: not read as KEY=VALUE ({_first(error)}); {remedy}"
    found = re.search(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and found:
        cause = f" ({_first(error.__cause__)})" if error.__cause__ is not None else ""
        return f"{found[1]}: no such key or value{cause}; see train.py --help"
    if isinstance(error, MissingConfigException):
        what = str(error).partition("Config search path")[0]
        return f"{one_line(what, _LONGEST)}; see train.py --help"
    return f"{one_line(error, _LONGEST)}; see train.py --help"


def _first(error: object) -> str:
    """The first line, which says what is wrong; what follows is for developers."""
    return one_line(str(error).partition("\n")[0], _LONGEST)
