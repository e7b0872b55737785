"""What `train.py --help` says: the options of every group, and every key, from the YAML's comments.

In: `configs/` and a composed config. Out: text. The first line of a YAML tells what it is for; a
comment beside a key, what the key means. Nothing is said twice.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

_COMMENT_COLUMN = 34
_KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#(?P<comment>.*))?")
_OTHER_PROGRAMS = {"inference"}  # configs of submit.py
_SECTIONS = """\
Groups and their options (GROUP=OPTION; * = chosen):

{}
The configuration as it stands (KEY=VALUE sets any key, such as train.epochs=100):

{}"""
BASE = "base"  # what the options of a group share


class _Dumper(yaml.SafeDumper):
    """YAML with lists in one line."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence(dumper.DEFAULT_SEQUENCE_TAG, value, True)
)


def purpose(path: Path) -> str:
    """The first line of a YAML file, without its comment mark."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").removeprefix("#").strip()


def groups(configs: Path) -> dict[str, dict[str, str]]:
    """{group: {option: its purpose}} of the groups that train.py composes."""
    folders = sorted(path for path in configs.iterdir() if path.is_dir())
    return {
        folder.name: {
            path.stem: purpose(path) for path in sorted(folder.glob("*.yaml")) if path.stem != BASE
        }
        for folder in folders
        if folder.name not in _OTHER_PROGRAMS
    }


def register_help(configs: Path) -> None:
    """Lets Hydra's help template say `${train_help:}`: options and keys of a composed config."""

    def text(*, _root_: DictConfig) -> str:
        config = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
        chosen = {str(k): str(v) for k, v in _root_.hydra.runtime.choices.items()}
        both = (describe_options(configs, chosen), describe_keys(config, configs, chosen))
        return _SECTIONS.format(*both).replace("$", "$$")  # Hydra substitutes $NAME afterwards

    OmegaConf.register_new_resolver("train_help", text, replace=True)


def describe_options(configs: Path, chosen: Mapping[str, str]) -> str:
    """Every group with its options, one line each; the chosen one is marked.

    Args:
        configs: the folder of configs.
        chosen: {group: option}.
    """
    lines = []
    for group, options in groups(configs).items():
        lines.append(f"{group}=")
        for name, text in options.items():
            mark = "*" if chosen.get(group) == name else " "
            lines.append(f"{mark} {name:<{max(map(len, options))}}  {text}")
        lines.append("")
    return "\n".join(lines)


def describe_keys(config: DictConfig, configs: Path, chosen: Mapping[str, str]) -> str:
    """A composed config as YAML, with what the files say about its keys beside them.

    Args:
        config: of train.py, without Hydra's own node.
        configs: the folder of configs.
        chosen: {group: option}.
    """
    comments = _comments(configs / "config.yaml")
    for group, option in chosen.items():
        for path in _with_parents(configs / group / f"{option}.yaml"):
            comments.update({f"{group}.{key}": text for key, text in _comments(path).items()})
    content: Any = OmegaConf.to_container(config)
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10_000)
    lines = []
    for key, _, line in _keys(text):
        comment = comments.get(key, "")
        lines.append(f"{line:<{_COMMENT_COLUMN}}  # {comment}" if comment else line)
    return "\n".join(lines)


def _with_parents(path: Path) -> Iterator[Path]:
    """An option's file after the files of its group that it builds on."""
    if not path.is_file():
        return
    for parent in yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []):
        if parent != "_self_":
            yield from _with_parents(path.with_name(f"{parent}.yaml"))
    yield path


def _keys(text: str) -> Iterator[tuple[str, str, str]]:
    """(dotted key or "", comment or "", line) of every line of a YAML text."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _KEY.match(line)
        if found is None:
            yield "", line.strip(" #") if line.startswith(" ") and "#" in line else "", line
            continue
        indent = len(found["indent"])
        above = [*((depth, key) for depth, key in above if depth < indent), (indent, found["key"])]
        yield ".".join(key for _, key in above), (found["comment"] or "").strip(), line


def _comments(path: Path) -> dict[str, str]:
    """{dotted key: comment beside it}, with the lines on which a comment goes on."""
    comments: dict[str, str] = {}
    last = ""
    for key, comment, _ in _keys(path.read_text(encoding="utf-8")):
        if key and comment:
            comments[key] = comment
        elif not key and comment and last in comments:
            comments[last] += f" {comment}"
            continue
        last = key
    return comments
