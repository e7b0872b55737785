"""Checkpoint files: write, read without running code, average, find; a file in, a model out.

A checkpoint is a dict saved by torch with at least `model_state_dict` and
`checkpoint_data: {"config": <full training config>}`. Those written here also say `versions`,
`units`, `channel_order` and that half-resolution labels were converted. Reading is weights-only:
a pickle in a file can build tensors, numbers and plain containers, and nothing else.
"""

import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from torch import Tensor, nn

import geopose
from geopose.data.io import atomic_path
from geopose.errors import InputError, RunError
from geopose.models.build import build_model, channel_order
from geopose.models.legacy import rename_state_dict

LABELS_CONVERTED = "converted"
MAX_NAMED = 5  # parameters named in one error line
SAVED_VERSIONS = ("torch", "timm", "pytorch-toolbelt", "albumentations", "numpy")
UNITS = {"agl": "m", "magnitude": "px", "scale": "px/m", "angle": "rad", "gsd": "m/px"}

# What reading a file that is no (whole) checkpoint raises, depending on where it breaks.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    AssertionError,
    OverflowError,
    MemoryError,
)


class _PickledDtype:
    """Stands in for numpy.dtype while a file is read: numbers and text only, no state of numpy."""

    def __init__(self, code: str, *_flags: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,4}", str(code)):
            raise pickle.UnpicklingError(f"numpy type {str(code)[:20]!r} is not a plain scalar")
        self.code = str(code)
        self.byte_order = "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("numpy type with an unknown byte order")
        self.byte_order = state[1]


def _numpy_scalar(dtype: _PickledDtype, data: bytes) -> Any:
    """Stands in for numpy's scalar constructor: returns the plain Python number or text."""
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("malformed numpy scalar")
    return np.frombuffer(data, dtype=np.dtype(dtype.byte_order + dtype.code), count=1)[0].item()


def _plain_dict(_default_factory: Any = None) -> dict:
    """Stands in for defaultdict, which torch's unpickler refuses to fill: an ordinary dict."""
    return {}


# Beside torch's own weights-only list: what trainers leave among their metrics. Numpy's names (of
# version 1 and 2) lead to the stand-ins above, so that nothing of numpy itself is called.
_ALLOWED: list[Callable | tuple[Callable, str]] = [
    OrderedDict,
    *(
        (factory, f"{module}.{factory.__name__}")
        for factory in (dict, list, int, float, set)
        for module in ("builtins", "__builtin__")
    ),
    (_plain_dict, "collections.defaultdict"),
    (_PickledDtype, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference and what its checkpoint says about its input and output.

    Attributes:
        model: in eval mode, on the CPU, float32.
        config: the full training config from the file.
        channel_order: "rgb" or "bgr", the order of the planes it was trained on.
        downsample: images are reduced by this factor before the model (1 = not).
        scale_is_downsampled: with downsample > 1, whether scale and gsd belong to the reduced image
            (trained here) or to the full one (published checkpoints).
        source: file name(s), for messages.
    """

    model: nn.Module
    config: Mapping[str, Any]
    channel_order: str
    downsample: int
    scale_is_downsampled: bool
    source: str


def describe_environment() -> dict[str, Any]:
    """What a checkpoint says about its origin: package versions, units, label convention."""
    versions = {"geopose": geopose.__version__}
    for package in SAVED_VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # torch of a custom build may be without metadata
            versions[package] = str(getattr(torch, "__version__", "")) if package == "torch" else ""
    return {"versions": versions, "units": dict(UNITS), "label_downsample": LABELS_CONVERTED}


def save_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically, with versions and units added.

    Args:
        path: the `.pth` file.
        payload: at least `model_state_dict` and `checkpoint_data: {"config": ...}` as plain
            containers; `channel_order` and whatever a resumed training needs.

    Raises:
        RunError: the payload holds something that could not be read back, or lacks a key.
    """
    path = Path(path)
    _require_keys(payload, path, RunError)
    with atomic_path(path) as temporary:
        try:
            torch.save({**describe_environment(), **payload}, temporary)
        except RuntimeError as error:  # of torch's file writer
            raise RunError(f"cannot write {path}: {_first_sentence(error)}") from error
        with torch.serialization.safe_globals(_ALLOWED):
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
        if refused:
            raise RunError(f"{path}: not saved, holds objects no reader accepts: {sorted(refused)}")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU without running anything in it.

    Tensors are memory-mapped where the format allows, so that parts nobody looks at (the
    optimizer's state) are never read.

    Raises:
        InputError: no such file, not a checkpoint, truncated, without the needed keys, or holding
            an object that is not weights, numbers or plain containers (named in the message).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pickle protocol of garbage
            payload = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except _UNREADABLE as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path}: refused, contains {refused.group(1)}, and a checkpoint may hold only "
                "weights, numbers and plain containers; save it again without that object"
            ) from error
        raise InputError(
            f"{path}: not a readable checkpoint ({_first_sentence(error)}); copy or download it "
            "again"
        ) from error
    _require_keys(payload, path, InputError)
    return payload


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split("WeightsUnpickler error:")[-1].split("Check the")[0].split())
    readable = re.search(r"[A-Za-z]{3}", text)
    return re.split(r"(?<=[a-z])[.:] ", text)[0][:120] if readable else type(error).__name__


def _require_keys(payload: Any, path: Path, error: type[InputError] | type[RunError]) -> None:
    """A checkpoint needs weights and the config that says which network they belong to."""
    if not isinstance(payload, Mapping):
        raise error(f"{path}: holds a {type(payload).__name__}, not a checkpoint dict")
    weights = payload.get("model_state_dict")
    if not isinstance(weights, Mapping) or not weights:
        raise error(f"{path}: no model_state_dict in it, so no weights to load")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise error(f"{path}: model_state_dict must map parameter names to tensors")
    data = payload.get("checkpoint_data")
    config = data.get("config") if isinstance(data, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        raise error(f"{path}: no checkpoint_data.config.model in it, so the network is unknown")


def _current_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights under today's parameter names."""
    try:
        return rename_state_dict(weights)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def load_weights_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copies weights into a model whose parameters must be exactly these.

    Raises:
        InputError: names missing, extra or mis-shaped parameters; the model is left unchanged.
    """
    expected = model.state_dict()
    problems = [
        _named("missing", [name for name in expected if name not in state_dict]),
        _named("unexpected", [name for name in state_dict if name not in expected]),
        _named(
            "of another shape",
            [
                f"{name} {list(state_dict[name].shape)} instead of {list(tensor.shape)}"
                for name, tensor in expected.items()
                if name in state_dict and state_dict[name].shape != tensor.shape
            ],
        ),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise InputError(f"{source}: weights do not fit the model: {'; '.join(found)}")
    model.load_state_dict(state_dict, strict=True)


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{len(names)} {what}: {', '.join(names[:MAX_NAMED])}{more}"


def average_checkpoints(payloads: Sequence[Mapping[str, Any]], source: str) -> dict[str, Tensor]:
    """Mean of the weights of several checkpoints, accumulated in float64.

    Args:
        payloads: as `load_checkpoint` returns them.
        source: their names, for messages.

    Returns:
        Weights under today's names, in the first file's dtypes. Integer buffers (counts of
        batches) are not averaged: the last file's are kept.

    Raises:
        InputError: names or shapes differ between the files.
    """
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for payload in payloads:
        weights = _current_names(payload["model_state_dict"], source)
        if not total:
            dtypes = {name: tensor.dtype for name, tensor in weights.items()}
        elif set(weights) != set(total):
            raise InputError(
                f"{source}: cannot be averaged, parameters in one file only: "
                f"{', '.join(sorted(set(weights) ^ set(total))[:MAX_NAMED])}"
            )
        for name, tensor in weights.items():
            if name in total and total[name].shape != tensor.shape:
                raise InputError(f"{source}: cannot be averaged, {name} differs in shape")
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
            elif name in total:
                total[name] += tensor.double()
            else:
                total[name] = tensor.to(torch.float64, copy=True)  # never the file's own memory
    return {
        name: (tensor / len(payloads)).to(dtypes[name]) if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }


def load_model(paths: str | Path | Sequence[str | Path]) -> LoadedModel:
    """Builds the network that a checkpoint describes and fills it with its weights.

    Args:
        paths: one file, or several whose weights are averaged.

    Returns:
        The model in eval mode on the CPU, with channel order and downsampling.

    Raises:
        InputError: unreadable file, unknown constructor, weights that do not fit, or files to
            average that disagree on the network, its channel order or downsampling.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    source = " + ".join(file.name for file in files)
    payloads = [load_checkpoint(file) for file in files]
    facts = [_input_facts(payload, file) for payload, file in zip(payloads, files, strict=True)]
    if any(fact != facts[0] for fact in facts):
        raise InputError(f"{source}: cannot be averaged, channel order or downsample differ")
    config = payloads[0]["checkpoint_data"]["config"]
    try:
        model = build_model(config["model"], load_pretrained=False)
    except InputError as error:
        raise InputError(f"{files[0]}: {error}") from error
    if len(payloads) == 1:
        weights = _current_names(payloads[0]["model_state_dict"], str(files[0]))
    else:
        weights = average_checkpoints(payloads, source)
    load_weights_strict(model, weights, str(files[0]) if len(files) == 1 else source)
    order, downsample, converted = facts[0]
    return LoadedModel(model.float().eval(), config, order, downsample, converted, source)


def _input_facts(payload: Mapping[str, Any], path: Path) -> tuple[str, int, bool]:
    """(channel order, downsample, scale is that of the reduced image) of one checkpoint."""
    config = payload["checkpoint_data"]["config"]
    order = payload.get("channel_order") or channel_order(config["model"])
    if order not in ("rgb", "bgr"):
        raise InputError(f"{path}: channel_order is {order!r}, must be rgb or bgr")
    train = config.get("train")
    downsample = (train.get("downsample") if isinstance(train, Mapping) else None) or 1
    if not isinstance(downsample, int) or not 1 <= downsample <= 16:
        raise InputError(f"{path}: train.downsample is {downsample!r}, must be a whole number >= 1")
    return order, downsample, payload.get("label_downsample") == LABELS_CONVERTED


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
