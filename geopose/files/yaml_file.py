"""A YAML file that a user names in, its plain content as OmegaConf's container out.

A few lines of YAML can mean more values than any memory holds, by aliases of aliases or references
to references, and brackets a thousand deep make its readers call themselves until the stack ends.
All of that shows in the stream of events, before anything is built.
"""

import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geopose.errors import InputError, one_line
from geopose.files.ordinary import check_ordinary

MOST_BYTES = 1 << 20
MOST_VALUES = 10_000
MOST_DEPTH = 30
MOST_BRACKETS = 2_000  # in a line
MOST_REFERENCES = 12  # "${...}": references to references to lists multiply what they lead to
_MOST_FILES = 2_000
_OPENING = re.compile(r"[\[{]")


def load_yaml(path: Path) -> DictConfig | ListConfig:
    """Reads a file; references in it are not resolved.

    Raises:
        InputError: no such file, not YAML, or of a size or depth that no config has.
    """
    text = _text(path)
    try:
        config = OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config ({one_line(error, 200)})") from error
    if not isinstance(config, DictConfig | ListConfig):
        raise InputError(f"{path}: not a config; it must hold keys and values")
    return config


def check_yaml(path: Path) -> None:
    """The same for a file that another library will read.

    Raises:
        InputError: as for `load_yaml`.
    """
    _text(path)


def check_yaml_folder(folder: Path) -> None:
    """The same for all YAML files in a folder and below."""
    for path in islice(folder.rglob("*.yaml"), _MOST_FILES):
        if path.is_file():
            check_yaml(path)


def _text(path: Path) -> str:
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise InputError(f"{path}: not a text file in UTF-8; name a YAML file") from error
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: refused, over {MOST_BYTES >> 20} MiB, which no config takes")
    try:
        _check(text, path)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config ({one_line(error, 200)})") from error
    return text


def _check(text: str, path: Path) -> None:
    if text.count("${") > MOST_REFERENCES:
        raise InputError(f"{path}: refused, over {MOST_REFERENCES} references (${{...}})")
    depth = total = 0
    sizes: dict[str, int] = {}  # of what has a name, its own names counted in full
    above: list[tuple[str | None, int]] = []
    for event in _events(text, path):
        total += 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise InputError(f"{path}: refused, {event.anchor!r} in it holds itself")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            above.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = above.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        if depth > MOST_DEPTH or total > MOST_VALUES:
            raise InputError(
                f"{path}: refused, over {MOST_VALUES} values or {MOST_DEPTH} levels deep"
            )


def _events(text: str, path: Path) -> Iterator[Any]:
    """What a reader of YAML would see; a line full of brackets is refused before it does."""
    for line in text.splitlines():
        if len(_OPENING.findall(line)) > MOST_BRACKETS:
            raise InputError(f"{path}: refused, over {MOST_BRACKETS} brackets in a line")
    yield from yaml.parse(text, Loader=yaml.SafeLoader)
