"""Arguments `KEY=TEXT` whose text is a path or a name: it is what was typed, not YAML.

YAML and Hydra read `0755` as 493, `on` as true, `[a]` as a list and end at ` #`.
"""

import re
from collections.abc import Collection, Sequence

_QUOTES = ("'", '"')
_SWEEPS = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list)\(.*\)|.*,.*")


def as_typed(text: str) -> str | None:
    """The value of a path's key: without quotes around it; None for `null` and nothing."""
    if len(text) > 1 and text[0] in _QUOTES and text[-1] == text[0]:
        return text[1:-1]
    return None if text in ("", "null") else text


def quoted_for_hydra(arguments: Sequence[str], keys: Collection[str], is_sweep: bool) -> list[str]:
    """Arguments of a command of Hydra's, with the values of some keys in quotes.

    Args:
        arguments: as typed.
        keys: dotted, whose values are paths.
        is_sweep: whether commas and functions stand for several runs.
    """
    return [_quoted(argument, keys, is_sweep) for argument in arguments]


def _quoted(argument: str, keys: Collection[str], is_sweep: bool) -> str:
    name, is_one, text = argument.partition("=")
    if not is_one or name.lstrip("+") not in keys or (is_sweep and _SWEEPS.fullmatch(text)):
        return argument
    value = as_typed(text)
    if value is None:
        return argument
    # Backslashes count only before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"{name}='{escaped}'"
