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

_NOTABLE_BYTES = 100 * 2**20  # hashing less than this takes no time worth a word


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short name for settings; equal settings have equal names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def digests(files: Sequence[Path], hashes: Mapping[str, list[Any]]) -> list[str]:
    """SHA-256 of each file, out of what `hash_checkpoints` returned."""
    return [hashes[_key(file)][-1] for file in files]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which settings differ, for the user: `tta null -> d4, models`."""
    parts = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after:
            simple = not isinstance(before, list) and not isinstance(after, list)
            parts.append(f"{key} {_yaml(before)} -> {_yaml(after)}" if simple else key)
    return ", ".join(parts)


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
