"""Which checkpoint files a YAML names: what stands in `ensemble.models`, in whatever form."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geopose.checkpoints.remote.fetch import Source
from geopose.errors import InputError, one_line
from geopose.files.yaml_file import load_yaml


def listed_sources(path: Path) -> list[Source]:
    """The checkpoints that an inference config names, in its order.

    Raises:
        InputError: no such file, not readable, or no models in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    try:
        config: Any = OmegaConf.to_container(load_yaml(path), resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config ({one_line(error, 200)})") from error
    ensemble = config.get("ensemble") if isinstance(config, Mapping) else None
    models = ensemble.get("models") if isinstance(ensemble, Mapping) else None
    found = list(_sources(models))
    if not found:
        raise InputError(f"{path}: ensemble.models must list at least one checkpoint")
    return found


def _sources(entry: Any) -> Iterator[Source]:
    if isinstance(entry, str):
        yield Source(entry)
    elif isinstance(entry, list):
        for item in entry:
            yield from _sources(item)
    elif isinstance(entry, Mapping):
        digest = entry.get("sha256")
        if isinstance(name := entry.get("checkpoint"), str):
            yield Source(name, digest.lower() if isinstance(digest, str) else None)
        yield from _sources(entry.get("average_checkpoints"))
