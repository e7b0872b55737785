"""What the numbers of a run follow from: its models' content, its views, how it computes.

Settings are a small dict that is equal for two runs exactly if their predictions
belong together, and a fingerprint of it.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geopose.checkpoints.remote.fetch import file_sha256
from geopose.errors import InputError
from geopose.system.cores import in_order

logger = logging.getLogger(__name__)

Settings = dict[str, Any]
# path -> [size, time of change, time of change of the file's entry, SHA-256]
KnownHashes = dict[str, list[Any]]

_MOST_NAMED = 4  # differences between models in one line
_NOTABLE_BYTES = 100 * 2**20  # hashing less than this takes no time worth a word


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short name for settings; equal settings have equal names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def digests(files: Sequence[Path], hashes: Mapping[str, list[Any]]) -> list[str]:
    """SHA-256 of each file, out of what `hash_checkpoints` returned."""
    return [hashes[_key(file)][-1] for file in files]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Which settings differ, for the user: `tta null -> d4, downsample of model 2 (b.pth) 1 -> 2`.

    Args:
        old: of the earlier run.
        new: of this one.
        names: of the files of this run's models.
    """
    parts = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after:
            simple = not isinstance(before, list) and not isinstance(after, list)
            changed = f"{_yaml(before)} -> {_yaml(after)}"
            parts.append(f"{key} {changed}" if simple else _models(before, after, names))
    return ", ".join(parts)


def _models(before: Any, after: Any, names: Sequence[str]) -> str:
    """What differs between the models of two runs, by their places in the list.

    A file is told by what its content hashes to: under which name it lay makes no difference.
    """
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        counts = [len(value) if isinstance(value, list) else 0 for value in (before, after)]
        return f"models {counts[0]} -> {counts[1]}"
    parts = []
    for number, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        old, new = (entry if isinstance(entry, dict) else {} for entry in (old, new))
        name = f"model {number}" + (f" ({names[number - 1]})" if number <= len(names) else "")
        parts += [
            f"{key} of {name} {_brief(old, key)} -> {_brief(new, key)}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    more = f" and {len(parts) - _MOST_NAMED} more" if len(parts) > _MOST_NAMED else ""
    return ", ".join(parts[:_MOST_NAMED]) + more if parts else "models"


def _brief(entry: Mapping[str, Any], key: str) -> str:
    """A value of a model: hashes by their first digits, descriptions of networks by a hash."""
    value = entry.get(key)
    if key == "network" and value is not None:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
    if isinstance(value, list):
        return "+".join(str(item)[:8] for item in value)
    return _yaml(value)


def hash_checkpoints(files: Sequence[Path], known: Mapping[str, list[Any]]) -> KnownHashes:
    """SHA-256 of every file, read only if it has changed since it was hashed last.

    Args:
        files: checkpoints; several hundred megabytes each, some seconds for nine of them.
        known: what this function returned for an earlier run.

    Raises:
        InputError: a file cannot be read.
    """
    found: KnownHashes = {}
    unread: list[Path] = []
    try:
        for file in sorted(set(files)):
            stat = file.stat()
            facts = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            found[_key(file)] = known.get(_key(file), [])
            if found[_key(file)][:-1] != facts:
                found[_key(file)] = [*facts, ""]
                unread.append(file)
        size = sum(found[_key(file)][0] for file in unread)
        if size > _NOTABLE_BYTES:
            logger.info("hashing %d checkpoint files, %.1f GB, once", len(unread), size / 1e9)
        for file, digest in zip(unread, in_order(file_sha256, unread), strict=True):
            found[_key(file)][-1] = digest
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    return found


def _key(file: Path) -> str:
    return str(file.resolve())


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)
