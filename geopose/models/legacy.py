"""Parameter names of published checkpoints in, today's names out: a pure renaming."""

import re
from collections.abc import Mapping
from typing import TypeVar

from geopose.errors import InputError

Value = TypeVar("Value")
_DECODER_NORM = re.compile(r"^(decoder\.blocks\.\d+)\.abn(\d)\.bn\.")


def published_to_current(name: str) -> str:
    """Today's name of a published parameter; a name of today stays as it is."""
    return _DECODER_NORM.sub(r"\1.norm\2.", name)


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
