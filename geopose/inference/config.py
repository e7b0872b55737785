"""Reads and checks inference configs: YAML and `key=value` arguments in, plain values out."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from geopose.checkpoints.formats.given import GivenNetwork, read_network
from geopose.checkpoints.remote.fetch import Source, is_url
from geopose.errors import InputError
from geopose.files.yaml_file import load_yaml
from geopose.inference.engines.backends import BACKENDS, OLD_NAMES
from geopose.inference.predict.ensemble import TTA_MODES, TTA_PER_MODEL
from geopose.inference.predict.tta import Tta
from geopose.schema.check import checked, key, section
from geopose.schema.typed import as_typed
from geopose.words import PRECISIONS

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
_Config = DictConfig | ListConfig
_PATHS = ("submission_dir",)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class _Ensemble:
    models: list[Any] = key(least=1, meaning="a list of at least one checkpoint")
    tta: str | None = key(None)
    tta_mode: str = key(TTA_PER_MODEL, choices=TTA_MODES)


@dataclass
class _Inference:
    batch_size: int = key(1, least=1)
    num_workers: int = key(2, least=0)
    backend: str = key("auto", choices=BACKENDS)
    precision: str | None = key(None, choices=PRECISIONS)
    fp16: bool = key(False)  # how published configs spell precision: fp16


@dataclass
class _File:
    """What an inference config holds."""

    ensemble: _Ensemble = section(_Ensemble)
    inference: _Inference = section(_Inference)
    submission_dir: str = key(meaning="a folder for the predictions")


@dataclass
class _Model:
    """An entry of `ensemble.models` that is more than a path or URL."""

    checkpoint: str | None = key(None)
    sha256: str | None = key(None, meaning="64 hex digits")
    average_checkpoints: list[Any] | None = key(None, least=1, meaning="paths or URLs")
    downsample: int | None = key(None, least=1)
    model: str | None = key(None, meaning="a model YAML, such as configs/model/b7_unet.yaml")
    channel_order: str | None = key(None, choices=("rgb", "bgr"))


@dataclass
class _Pinned:
    """A file with the hash that it must have."""

    checkpoint: str = key(meaning="a path or URL")
    sha256: str | None = key(None, meaning="64 hex digits")


@dataclass(frozen=True)
class ModelEntry:
    """One model of an ensemble.

    Attributes:
        sources: one checkpoint, or several whose weights are averaged.
        downsample: reduction of the images; None = as the checkpoint says.
        network: of files that hold weights alone; None = as the checkpoint says.
    """

    sources: tuple[Source, ...]
    downsample: int | None = None
    network: GivenNetwork | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the checkpoints lie once `fetch_all` has seen the sources."""
        return tuple(source.path for source in self.sources)


@dataclass(frozen=True)
class InferenceConfig:
    """One inference run, checked: every name is known, every file that is no URL exists."""

    source: Path
    models: tuple[ModelEntry, ...]
    submission_dir: Path
    tta: str | None = None
    tta_mode: str = TTA_PER_MODEL
    batch_size: int = 1
    num_workers: int = 2
    backend: str = "auto"
    precision: str = "auto"


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tells config files from `key=value` overrides among a command's arguments."""
    overrides = [text for text in arguments if _OVERRIDE.match(text)]
    files = [Path(text) for text in arguments if not _OVERRIDE.match(text)]
    if not files:
        raise InputError("no config file given; name one, such as configs/inference/NAME.yaml")
    return files, overrides


def load_configs(files: Sequence[Path], overrides: Sequence[str]) -> list[InferenceConfig]:
    """Reads several configs; all are checked before the first one runs.

    Raises:
        InputError: as for `load_config`, or two of them write to the same folder.
    """
    configs = [load_config(file, overrides) for file in files]
    folders = [config.submission_dir.resolve() for config in configs]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise InputError(f"{files[index]}: submission_dir {folder} is used by another config")
    return configs


def load_config(path: Path, overrides: Sequence[str] = ()) -> InferenceConfig:
    """Reads one YAML file, applies `key=value` overrides and checks everything in it.

    Args:
        path: the YAML file.
        overrides: such as `ensemble.tta=null` or `submission_dir=out`; they win over the file.

    Raises:
        InputError: missing or unreadable file, unknown key, wrong value, missing checkpoint.
    """
    return _checked(path, _read(path, overrides))


def config_of_checkpoint(name: str, overrides: Sequence[str] = ()) -> InferenceConfig:
    """What a config would say that names one checkpoint, and the views of d4.

    Args:
        name: a path or URL.
        overrides: as of `load_config`.

    Raises:
        InputError: no such file, unknown key or wrong value.
    """
    path = Path(name)
    content = {"ensemble": {"tta": "d4", "models": [name]}, "submission_dir": os.curdir}
    return _checked(path, _overridden(path, OmegaConf.create(content), overrides))


def _checked(path: Path, raw: Any) -> InferenceConfig:
    try:
        return _config(path, checked(_File, _in_current_words(raw)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _in_current_words(raw: Any) -> Any:
    """A config with today's name of its backend."""
    inference = raw.get("inference") if isinstance(raw, Mapping) else None
    if not isinstance(inference, Mapping) or inference.get("backend") not in list(OLD_NAMES):
        return raw
    return {**raw, "inference": {**inference, "backend": OLD_NAMES[inference["backend"]]}}


def _config(path: Path, content: Mapping[str, Any]) -> InferenceConfig:
    ensemble, inference = content["ensemble"], content["inference"]
    Tta.from_name(ensemble["tta"])
    if not content["submission_dir"]:
        raise InputError("submission_dir is not set; give a folder for the predictions")
    return InferenceConfig(
        source=path,
        models=tuple(
            _model_entry(entry, f"ensemble.models[{number}]")
            for number, entry in enumerate(ensemble["models"])
        ),
        submission_dir=Path(os.path.expanduser(content["submission_dir"])),
        tta=ensemble["tta"],
        tta_mode=ensemble["tta_mode"],
        batch_size=inference["batch_size"],
        num_workers=inference["num_workers"],
        backend=inference["backend"],
        precision=_precision(inference),
    )


def _precision(inference: Mapping[str, Any]) -> str:
    """`precision`, or what older configs say with `fp16: True`."""
    precision, fp16 = inference["precision"], inference["fp16"]
    if fp16 and precision not in (None, "fp16"):
        raise InputError(
            f"inference.fp16 is true and inference.precision is {precision}; leave one out"
        )
    return precision or ("fp16" if fp16 else "auto")


def _read(path: Path, overrides: Sequence[str]) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    try:
        content: _Config = load_yaml(path)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config: {error}") from error
    return _overridden(path, content, overrides)


def _overridden(path: Path, content: _Config, overrides: Sequence[str]) -> Any:
    """A config with its overrides, as plain containers."""
    try:
        for override in overrides:
            content = _override(content, override)
        return OmegaConf.to_container(content, resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config: {error}") from error


def _override(config: _Config, argument: str) -> _Config:
    """The config with one `key=value` argument in it; InputError naming the argument."""
    name, _, text = argument.partition("=")
    if name in _PATHS:
        return OmegaConf.merge(config, {name: as_typed(text)})
    above = name.rpartition(".")[0]
    while above:
        if OmegaConf.is_list(OmegaConf.select(config, above, throw_on_missing=False)):
            raise InputError(
                f"{argument}: {above} is a list, and lists are replaced whole; "
                f"give {above}=[FIRST,SECOND]"
            )
        above = above.rpartition(".")[0]
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist([argument]))
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(f"{argument}: cannot be set: {error}") from error


def _model_entry(entry: Any, where: str) -> ModelEntry:
    """A path or URL, or a mapping with `checkpoint` or `average_checkpoints`."""
    if isinstance(entry, str):
        return ModelEntry((_source(entry, where),))
    model = checked(_Model, entry, f"{where}.")
    single, several = model["checkpoint"], model["average_checkpoints"]
    if (single is None) == (several is None):
        raise InputError(f"{where}: give either checkpoint or average_checkpoints")
    if several is None:
        pinned = {"checkpoint": single, "sha256": model["sha256"]}
        return ModelEntry((_source(pinned, where),), model["downsample"], _network(model))
    if model["sha256"] is not None:
        raise InputError(
            f"{where}: sha256 belongs to one file: average_checkpoints: "
            "[{checkpoint: PATH, sha256: HASH}, ...]"
        )
    sources = tuple(
        _source(item, f"{where}.average_checkpoints[{number}]")
        for number, item in enumerate(several)
    )
    return ModelEntry(sources, model["downsample"], _network(model))


def _network(model: Mapping[str, Any]) -> GivenNetwork | None:
    """What an entry says of files without a config, in `model` and `channel_order`."""
    name, order, downsample = model["model"], model["channel_order"], model["downsample"]
    if name is None and order is None:
        return None
    if not name:
        raise InputError(
            f"model is {name!r}, must name a model YAML, such as configs/model/b7_unet.yaml"
            + (" (channel_order goes with it)" if order is not None else "")
        )
    if downsample not in (None, 1):
        raise InputError(
            f"downsample is {downsample} beside model: {name}, and weights alone do not say "
            "whether their scales are those of the reduced image; leave downsample out"
        )
    return read_network(Path(name).expanduser(), order)


def _source(item: Any, where: str) -> Source:
    """A path or URL, or a mapping of `checkpoint` and `sha256`."""
    pinned = checked(_Pinned, {"checkpoint": item} if isinstance(item, str) else item, f"{where}.")
    name, digest = pinned["checkpoint"], pinned["sha256"]
    if not name:
        raise InputError(f"{where}='': must be a path or URL")
    if digest is not None:
        digest = digest.lower()
        if not _SHA256.fullmatch(digest):
            raise InputError(f"sha256 of {name} is {pinned['sha256']!r}, must be 64 hex digits")
    source = Source(name, digest)
    if not is_url(name) and not source.path.is_file():
        raise InputError(f"{name}: no such checkpoint file (looked from {Path.cwd()})")
    return source
