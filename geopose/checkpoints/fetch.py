"""Where the file of a model entry lies: a path as given, or the cache of fetched files."""

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch

from geopose.errors import InputError


def checkpoint_cache() -> Path:
    """Folder of fetched checkpoints: $GEOPOSE_CACHE, else torch hub's."""
    cache = os.environ.get("GEOPOSE_CACHE")
    return Path(cache) if cache else Path(torch.hub.get_dir()) / "checkpoints"


def is_url(entry: str) -> bool:
    """Whether a model entry names a file on a server."""
    return urlparse(entry).scheme in ("http", "https")


def resolve_checkpoint(entry: str) -> Path:
    """The local file of a model entry.

    Args:
        entry: a path (relative ones count from the working directory) or an http(s) URL, whose
            file is looked up by name in `checkpoint_cache()`.

    Raises:
        InputError: the file is not there; says which file to put where.
    """
    if not is_url(entry):
        path = Path(entry).expanduser()
        if not path.is_file():
            raise InputError(f"{entry}: no such checkpoint file (looked from {Path.cwd()})")
        return path
    name = unquote(Path(urlparse(entry).path).name)
    path = checkpoint_cache() / name
    if not name or not path.is_file():
        raise InputError(
            f"{name or entry} is not in the cache: fetch {entry} and put it into {path.parent}"
        )
    return path
