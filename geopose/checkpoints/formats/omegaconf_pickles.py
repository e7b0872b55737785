"""Stand-ins for OmegaConf's containers in a pickle: they end as plain dicts, lists and values.

Nothing of OmegaConf is called, and nothing is resolved: an interpolation stays the text that it is.
A container that was pickled as a part of a larger one refers to that as its parent, which refers
back; parents and metadata are not looked at.
"""

import pickle
from collections.abc import Callable
from typing import Any

_SCALARS = (bool, int, float, str)


class _Word:
    """Stands in for a type that metadata mention, and for metadata themselves: says nothing."""

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _Node:
    """Stands in for a node with a single value."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        value = _entry(state, "_val")
        if value is not None and type(value) not in _SCALARS:
            raise pickle.UnpicklingError(f"OmegaConf node with a {type(value).__name__} in it")
        self.value = value


class _Union:
    """Stands in for a node that holds a node of one of several types."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        self.value = _plain(_entry(state, "_content"))


class _Dict(dict):
    """Stands in for DictConfig; `text` is what it is in place of a dict, such as "${other}"."""

    text: tuple[str | None, ...] = ()

    def __setstate__(self, state: Any) -> None:
        content = _entry(state, "_content")
        self.clear()
        if content is None or isinstance(content, str):
            self.text = (content,)
        elif type(content) is dict and all(_is_key(key) for key in content):
            self.update((key, _plain(item)) for key, item in content.items())
        else:
            raise pickle.UnpicklingError("malformed OmegaConf dict")


class _List(list):
    """Stands in for ListConfig; `text` as in `_Dict`."""

    text: tuple[str | None, ...] = ()

    def __setstate__(self, state: Any) -> None:
        content = _entry(state, "_content")
        self.clear()
        if content is None or isinstance(content, str):
            self.text = (content,)
        elif type(content) is list:
            self.extend(_plain(item) for item in content)
        else:
            raise pickle.UnpicklingError("malformed OmegaConf list")


def _entry(state: Any, name: str) -> Any:
    if type(state) is not dict or name not in state:
        raise pickle.UnpicklingError("malformed OmegaConf container")
    return state[name]


def _is_key(key: Any) -> bool:
    return key is None or type(key) in _SCALARS


def _plain(item: Any) -> Any:
    """What a container holds, without the stand-ins that are no containers."""
    if isinstance(item, _Node | _Union):
        return item.value
    if isinstance(item, _Dict | _List):
        return item.text[0] if item.text else item
    raise pickle.UnpicklingError(f"OmegaConf container with a {type(item).__name__} in it")


_NODES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
_WORDS = (
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any", "typing.Dict",
    "typing.List", "typing.Tuple", "typing.Union",
    "builtins.str", "builtins.bool", "builtins.bytes",
)  # fmt: skip
ALLOWED: list[tuple[Callable, str]] = [
    (_Dict, "omegaconf.dictconfig.DictConfig"),
    (_List, "omegaconf.listconfig.ListConfig"),
    (_Union, "omegaconf.base.UnionNode"),
    *((_Node, f"omegaconf.nodes.{kind}Node") for kind in _NODES),
    *((_Word, name) for name in _WORDS),
]
