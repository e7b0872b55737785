"""Reads and checks inference configs: YAML and `key=value` arguments in, plain values out."""

import re
from collections.abc import Callable, Mapping, Sequence
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
from geopose.inference.engines.backends import check_backend
from geopose.inference.engines.precision import check_precision
from geopose.inference.predict.ensemble import TTA_PER_MODEL, check_tta_mode
from geopose.inference.predict.tta import Tta

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
_SECTIONS: dict[str, set[str]] = {
    "": {"ensemble", "inference", "submission_dir"},
    "ensemble": {"tta", "tta_mode", "models"},
    "inference": {"batch_size", "num_workers", "backend", "precision", "fp16"},
}
_Config = DictConfig | ListConfig
_MODEL_KEYS = {
    "checkpoint", "sha256", "average_checkpoints", "downsample", "model", "channel_order",
}  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    raw = _read(path, overrides)
    sections = {name: _section(raw, name, path) for name in _SECTIONS}
    ensemble, inference = sections["ensemble"], sections["inference"]
    models = ensemble.get("models")
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise InputError(f"{path}: ensemble.models must list at least one checkpoint")
    tta_mode = ensemble.get("tta_mode", TTA_PER_MODEL)
    tta = ensemble.get("tta")
    try:
        check_tta_mode(tta_mode)
        Tta.from_name(tta)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    submission_dir = raw.get("submission_dir")
    if submission_dir in (None, ""):
        raise InputError(f"{path}: submission_dir is not set; give a folder for the predictions")
    return InferenceConfig(
        source=path,
        models=tuple(_model_entry(entry, path) for entry in models),
        submission_dir=Path(str(submission_dir)).expanduser(),
        tta=tta,
        tta_mode=tta_mode,
        batch_size=_whole(inference, "batch_size", 1, 1, path),
        num_workers=_whole(inference, "num_workers", 2, 0, path),
        backend=_checked(inference.get("backend", "auto"), check_backend, path),
        precision=_precision(inference, path),
    )


def _checked(name: Any, check: Callable[[object], None], path: Path) -> str:
    try:
        check(name)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return str(name)


def _precision(inference: Mapping[str, Any], path: Path) -> str:
    """`precision`, or what older configs say with `fp16: True`."""
    fp16 = inference.get("fp16", False)
    if not isinstance(fp16, bool):
        raise InputError(f"{path}: inference.fp16 is {fp16!r}, use true or false")
    default = "fp16" if fp16 else "auto"
    precision = _checked(inference.get("precision", default), check_precision, path)
    if fp16 and precision != "fp16":
        raise InputError(
            f"{path}: inference.fp16 is true and inference.precision is {precision}; leave one out"
        )
    return precision


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    try:
        merged: _Config = load_yaml(path)
        for override in overrides:
            merged = _override(merged, override)
        raw = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must hold keys {', '.join(sorted(_SECTIONS['']))}")
    return {str(key): value for key, value in raw.items()}


def _override(config: _Config, argument: str) -> _Config:
    """The config with one `key=value` argument in it; InputError naming the argument."""
    key = argument.partition("=")[0]
    above = key.rpartition(".")[0]
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


def _section(raw: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    """One level of the config, with nothing in it that nobody reads."""
    section = raw if not name else raw.get(name)
    section = {} if section is None else section
    if not isinstance(section, Mapping):
        raise InputError(f"{path}: {name} must hold keys {', '.join(sorted(_SECTIONS[name]))}")
    unknown = [key for key in section if key not in _SECTIONS[name]]
    if unknown:
        prefix = f"{name}." if name else ""
        raise InputError(
            f"{path}: unknown key {prefix}{unknown[0]}; allowed: "
            f"{', '.join(prefix + key for key in sorted(_SECTIONS[name]))}"
        )
    return section


def _whole(section: Mapping[str, Any], key: str, default: int, least: int, path: Path) -> int:
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{path}: {key} is {value!r}, must be a whole number, {least} or more")
    return value


def _model_entry(entry: Any, path: Path) -> ModelEntry:
    """A path or URL, or a mapping with `checkpoint` or `average_checkpoints`."""
    if isinstance(entry, str) and entry:
        return ModelEntry((_source(entry, path),))
    if not isinstance(entry, Mapping) or not set(entry) <= _MODEL_KEYS:
        raise InputError(
            f"{path}: {entry!r} in ensemble.models: give a path, a URL, or a mapping with "
            f"{', '.join(sorted(_MODEL_KEYS))}"
        )
    single, several = entry.get("checkpoint"), entry.get("average_checkpoints")
    if (single is None) == (several is None):
        raise InputError(
            f"{path}: a model needs either checkpoint or average_checkpoints, got {dict(entry)}"
        )
    pin = {"sha256": entry["sha256"]} if "sha256" in entry else {}
    if several is not None and pin:
        raise InputError(
            f"{path}: sha256 belongs to one file: average_checkpoints: "
            "[{checkpoint: PATH, sha256: HASH}, ...]"
        )
    names = [{"checkpoint": single, **pin}] if several is None else several
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: checkpoints must be paths or URLs, got {names!r}")
    downsample = None
    if entry.get("downsample") is not None:
        downsample = _whole(entry, "downsample", 1, 1, path)
    sources = tuple(_source(name, path) for name in names)
    return ModelEntry(sources, downsample, _network(entry, downsample, path))


def _network(entry: Mapping[str, Any], downsample: int | None, path: Path) -> GivenNetwork | None:
    """What an entry says of files without a config, in `model` and `channel_order`."""
    name, order = entry.get("model"), entry.get("channel_order")
    if name is None and order is None:
        return None
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{path}: model is {name!r}, must name a model YAML, such as configs/model/b7_unet.yaml"
            + (" (channel_order goes with it)" if order is not None else "")
        )
    if downsample not in (None, 1):
        raise InputError(
            f"{path}: downsample is {downsample} beside model: {name}, and weights alone do not "
            "say whether their scales are those of the reduced image; leave downsample out"
        )
    try:
        return read_network(Path(name).expanduser(), order)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _source(item: Any, path: Path) -> Source:
    """A path or URL, or a mapping of `checkpoint` and `sha256`."""
    pinned = item if isinstance(item, Mapping) else {"checkpoint": item}
    name, digest = pinned.get("checkpoint"), pinned.get("sha256")
    if not isinstance(name, str) or not name or not set(pinned) <= {"checkpoint", "sha256"}:
        raise InputError(f"{path}: checkpoints must be paths or URLs, got {item!r}")
    if digest is not None:
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest.lower()):
            raise InputError(f"{path}: sha256 of {name} is {digest!r}, must be 64 hex digits")
        digest = digest.lower()
    source = Source(name, digest)
    if not is_url(name) and not source.path.is_file():
        raise InputError(f"{path}: {name}: no such checkpoint file (looked from {Path.cwd()})")
    return source
