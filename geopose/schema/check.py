"""Config schemas: dataclasses whose fields say what each key takes, and the check against them.

In: a dataclass made of `key(...)` and `section(...)` fields, and nested mappings as YAML files and
command lines give them. Out: plain dicts with every key of the schema, values of the declared types
(OmegaConf's structured configs convert and refuse), or one line that names what is wrong.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geopose.construct import plain
from geopose.errors import InputError, one_line
from geopose.schema.numbers import is_number

_LIMITS = "limits"
_LONGEST = 120  # characters of a value that a message shows
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Limits:
    """What a key takes beyond its type.

    Attributes:
        least: smallest number allowed, or length of a list.
        above: more than `least`, not just as much.
        most: largest number allowed.
        choices: the texts allowed; beside numbers for a key of type `int | str`.
        meaning: what messages say that the key takes, where types and limits say too little.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()
    meaning: str = ""

    def allow(self, value: Any) -> bool:
        """Whether a value of the right type keeps to them."""
        if isinstance(value, list):
            return len(value) >= self.least
        if is_number(value):
            in_range = math.isfinite(value) and self.least <= value <= self.most
            return in_range and not (self.above and value == self.least)
        return not isinstance(value, str) or not self.choices or value in self.choices

    def describe(self, hint: Any) -> str:
        """What a key with this type hint takes."""
        types = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        parts = [self.meaning or self._describe(types[0])]
        if str in types[1:]:
            parts += self.choices
        if NoneType in types:
            parts.append("null")
        return " or ".join(parts)

    def _describe(self, kind: Any) -> str:
        if kind is str and self.choices:
            return f"one of {', '.join(self.choices)}"
        text = _WORDS.get(kind, "a list" if get_origin(kind) is list else "a mapping")
        if kind in (int, float) and math.isfinite(self.least):
            text += f" above {self.least:g}" if self.above else f" from {self.least:g}"
        if kind in (int, float) and math.isfinite(self.most):
            text += f" to {self.most:g}"
        return text


def key(default: Any = MISSING, **limits: Any) -> Any:
    """A field of a schema.

    Args:
        default: what a config that lacks the key means; MISSING = it must have the key.
        limits: of `Limits`.
    """
    return field(default=default, metadata={_LIMITS: Limits(**limits)})


def section(schema: type, meaning: str = "") -> Any:
    """A field of a schema that is a schema itself.

    Args:
        schema: of the section; a config that lacks it, or has null, means its defaults.
        meaning: what the key takes; if given, anything but a mapping is refused with these words.
    """
    return field(default_factory=schema, metadata={_LIMITS: Limits(meaning=meaning)})


def defaults(schema: type) -> dict[str, Any]:
    """What a config means that lacks keys: those of a schema that it may lack, sections apart."""
    own = {one.name: one.default for one in fields(schema) if one.default is not NO_DEFAULT}
    return {name: copy.copy(value) for name, value in own.items() if value != MISSING}


def shown(value: Any) -> str:
    """A value in a message, as YAML spells it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return one_line(value, _LONGEST) if str(value) else "''"


def checked(schema: type, given: Any, inside: str = "") -> dict[str, Any]:
    """A config in plain dicts and lists: every key known, none missing, each with a value it takes.

    Args:
        schema: a dataclass of `key` and `section` fields.
        given: a mapping, without interpolations.
        inside: the dotted key of the section that this is, with a dot at its end.

    Raises:
        InputError: names the key, the value and what is allowed.
    """
    _check_names(schema, given, inside)
    hints = get_type_hints(schema)
    node = copy.deepcopy(_own_keys(schema))
    return {one.name: _value(node, one, hints[one.name], given, inside) for one in fields(schema)}


@cache
def _own_keys(schema: type) -> Any:
    """The keys of a schema with their defaults, as OmegaConf has them; without its sections, which
    are checked apart: making and copying all of them at each level is most of the time. Copy it.
    """
    hints = get_type_hints(schema)
    own = [one for one in fields(schema) if not is_dataclass(hints[one.name])]
    return OmegaConf.structured(
        make_dataclass(schema.__name__, [(x.name, hints[x.name], copy.copy(x)) for x in own])
    )


def _check_names(schema: Any, given: Any, inside: str) -> None:
    """Refuses unknown keys, in the sections too: a misspelt key is also one that is missing."""
    hints = get_type_hints(schema)
    allowed = ", ".join(inside + name for name in sorted(hints))
    if not isinstance(given, Mapping):
        what = f"{inside.removesuffix('.')}={shown(given)}: " if inside else ""
        raise InputError(f"{what}must hold keys {allowed}")
    for name, value in given.items():
        if name not in hints:
            raise InputError(f"unknown key {inside}{name}; allowed: {allowed}")
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            _check_names(hints[name], value, f"{inside}{name}.")


def _value(node: Any, one: Field[Any], hint: Any, given: Mapping[str, Any], inside: str) -> Any:
    """The value of one key.

    Args:
        node: of `_own_keys`; takes the value.
        one: the key's field.
        hint: its type.
        given: the mapping around it.
        inside: as of `checked`.
    """
    where, limits = inside + one.name, one.metadata[_LIMITS]
    value = given.get(one.name)
    if is_dataclass(hint):
        if limits.meaning and not isinstance(value, Mapping):
            raise InputError(f"{where}={shown(value)}: {limits.meaning}")
        return checked(cast(type, hint), {} if value is None else value, f"{where}.")
    if _is_text_only(hint) and not limits.choices and not isinstance(value, str | None):
        raise InputError(
            f"{where}={shown(value)}: YAML reads this as {_kind(value)}, and it must be "
            f"{limits.describe(hint)}; put it in quotes, such as {one.name}: '{shown(value)}'"
        )
    refused = InputError(f"{where}={shown(value)}: must be {limits.describe(hint)}")
    if one.name in given:
        try:
            node.merge_with({one.name: _items(hint, value, where)})
        except OmegaConfBaseException as error:
            raise refused from error
    if OmegaConf.is_missing(node, one.name):
        raise InputError(f"{where} is not set: must be {limits.describe(hint)}")
    value = plain(node[one.name])
    if not limits.allow(value):
        raise refused
    return value


def _is_text_only(hint: Any) -> bool:
    kinds = set(get_args(hint)) if isinstance(hint, UnionType) else {hint}
    return kinds <= {str, NoneType}


def _kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return _WORDS[bool] if isinstance(value, bool) else "a number"


def _items(hint: Any, value: Any, where: str) -> Any:
    """A list whose items have a schema with each of them checked; other values as they are."""
    schema = next(iter(get_args(hint)), None)
    if not isinstance(value, list) or not is_dataclass(schema):
        return value
    return [checked(cast(type, schema), item, f"{where}[{i}].") for i, item in enumerate(value)]
