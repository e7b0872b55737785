"""Reads recipes.yaml: what each recipe tells train.py, and the networks that its heads make."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from geopose.construct import plain
from geopose.errors import InputError
from geopose.files.atomic import atomic_path


@dataclass(frozen=True)
class Recipe:
    """A name, the heads of the network and overrides of train.py."""

    name: str
    heads: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Book:
    """What recipes.yaml holds."""

    common: tuple[str, ...]
    heads: dict[str, dict[str, Any]]
    recipes: dict[str, Recipe]

    def named(self, name: str) -> Recipe:
        """A recipe; InputError if there is none of that name."""
        if name not in self.recipes:
            raise InputError(f"no recipe {name!r}; there are {', '.join(self.recipes)}")
        return self.recipes[name]

    def overrides(self, recipe: Recipe, extra: Sequence[str]) -> tuple[str, ...]:
        """All overrides of a recipe but its network: common, then `extra`, then its own."""
        return merged([*self.common, *extra, *recipe.overrides])


def name_of(override: str) -> str:
    """`++train.ema=0.999` -> `train.ema`."""
    return override.partition("=")[0].lstrip("+~")


def merged(overrides: Sequence[str]) -> tuple[str, ...]:
    """The last line for each key; a group (no dot) drops what stood below it before."""
    kept: dict[str, str] = {}
    for override in overrides:
        key = name_of(override)
        kept = {k: v for k, v in kept.items() if k != key and not k.startswith(f"{key}.")}
        kept[key] = override
    return tuple(kept.values())


def value_of(overrides: Sequence[str], key: str, default: str) -> str:
    """The value that is given for a key."""
    given = {name_of(override): override.partition("=")[2] for override in overrides}
    return given.get(key, default)


def read_recipes(path: Path) -> Book:
    """Reads the file; a recipe with `from` begins as the other does.

    Raises:
        InputError: a recipe builds on one that does not stand above it, or names unknown heads.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipes: dict[str, Recipe] = {}
    for name, said in content["recipes"].items():
        base = Recipe(name, "", ())
        if "from" in said:
            if said["from"] not in recipes:
                raise InputError(f"{path}: {name} is from {said['from']}, which is not above it")
            base = recipes[said["from"]]
        heads = said.get("heads", base.heads)
        if heads not in content["heads"]:
            known = ", ".join(content["heads"])
            raise InputError(f"{path}: heads of {name} are {heads!r}, expected {known}")
        recipes[name] = Recipe(name, heads, merged([*base.overrides, *said.get("set", ())]))
    return Book(tuple(content["common"]), content["heads"], recipes)


def network(configs: Path, model: str, heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The `model` node of a shipped option with other heads.

    Args:
        configs: folder of the training configs.
        model: an option of its group `model`.
        heads: {part: what replaces it, if it has a `_target_`, or else changes it}.

    Raises:
        InputError: no such option.
    """
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            node: dict[str, Any] = plain(compose("config", [f"model={model}"]))["model"]
    except HydraException as error:
        raise InputError(f"--model {model}: {str(error).splitlines()[0]}") from error
    for part, change in heads.items():
        whole = dict(change) if "_target_" in change else {**node[part], **change}
        node[part] = {key: value for key, value in whole.items() if value is not None}
    return node


def write_network(folder: Path, name: str, node: Mapping[str, Any]) -> str:
    """Writes the option `model=NAME` for `train.py --config-dir FOLDER`; returns its override."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model" / f"{name}.yaml") as partial:
        partial.write_text(yaml.safe_dump(dict(node), sort_keys=False), encoding="utf-8")
    return f"model={name}"


def mark_of(*what: object) -> str:
    """Eight digits that change with what is given."""
    return f"{zlib.crc32(repr(what).encode()):08x}"
