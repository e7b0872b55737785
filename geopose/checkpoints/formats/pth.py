"""Checkpoint files: written whole, read without running anything in them.

A checkpoint is a dict saved by torch with at least `model_state_dict` and
`checkpoint_data: {"config": <full training config>}`. Those written here also say `versions`,
`units`, `channel_order` and that half-resolution labels were converted.
"""

import os
import pickle
import re
import shutil
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import geopose
from geopose.checkpoints.formats.contents import check_network, weights_of, with_network
from geopose.checkpoints.formats.facts import LABELS_CONVERTED
from geopose.checkpoints.formats.given import GivenNetwork
from geopose.checkpoints.formats.pickles import ALLOWED
from geopose.checkpoints.formats.safetensors_file import read_safetensors
from geopose.checkpoints.formats.tar_format import is_tar, read_tar
from geopose.checkpoints.formats.zip_format import check_zip, is_zip
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path
from geopose.files.kinds import foreign_kind
from geopose.words import INT8, ONNX, SAFETENSORS

ENGINE_FILES = (ONNX, INT8)  # files that hold a network to run, and no weights to take
SAVED_VERSIONS = ("timm", "pytorch-toolbelt", "albumentations", "numpy")
UNITS = {"agl": "m", "magnitude": "px", "scale": "px/m", "angle": "rad", "gsd": "m/px"}

# What reading a file that is no (whole) checkpoint raises, depending on where it breaks.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    tarfile.TarError,
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


def describe_environment() -> dict[str, Any]:
    """What a checkpoint says about its origin: package versions, units, label convention."""
    # torch itself tells its build ("2.13.0+cu130"); the metadata of PyPI's packages leaves it out.
    versions = {"geopose": geopose.__version__, "torch": str(torch.__version__)}
    for package in SAVED_VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    return {"versions": versions, "units": dict(UNITS), "label_downsample": LABELS_CONVERTED}


def save_checkpoint(
    path: str | Path, payload: Mapping[str, Any], keep: str | Path | None = None
) -> None:
    """Writes a checkpoint atomically, with versions and units added.

    When it returns, the file is on the disk: a loss of power leaves this one or the one before.

    Args:
        path: the `.pth` file.
        keep: under this name, in the same folder, the file that was there before stays.
        payload: at least `model_state_dict` and `checkpoint_data: {"config": ...}` as plain
            containers; `channel_order` and whatever a resumed training needs.

    Raises:
        RunError: the payload holds something that could not be read back, or lacks a key.
    """
    path = Path(path)
    check_network(weights_of(payload, path, RunError), path, RunError)
    with atomic_path(path) as temporary:
        try:
            torch.save({**describe_environment(), **payload}, temporary)
        except RuntimeError as error:  # of torch's file writer
            raise RunError(f"cannot write {path}: {_first_sentence(error)}") from error
        with torch.serialization.safe_globals(ALLOWED):
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
        if refused:
            raise RunError(f"{path}: not saved, holds objects no reader accepts: {sorted(refused)}")
        _to_disk(temporary)
        if keep is not None and path.is_file():
            with atomic_path(keep) as copy:
                _link_or_copy(path, copy)
    _to_disk(path.parent)


def _link_or_copy(path: Path, copy: Path) -> None:
    """A second name for a file; where the file system has no such thing, a second file."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)  # says what is wrong if more than links is
        _to_disk(copy)


def _to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: str | Path, given: GivenNetwork | None = None) -> dict[str, Any]:
    """Reads a .pth or .safetensors checkpoint onto the CPU without running anything in it.

    Tensors are memory-mapped, so that parts nobody looks at (the optimizer's state) take no memory;
    only a .pth in the formats of torch before 1.6, or a compressed one, has to be read whole. Of a
    zip archive the checksums are compared, once in a process.

    Args:
        path: the file.
        given: the network of a file that holds weights alone.

    Returns:
        `model_state_dict` and `checkpoint_data.config`, whose `model` is in today's words, and what
        else is in the file.

    Raises:
        InputError: no such file, not a checkpoint, truncated, without the needed keys, or holding
            an object that is not weights, numbers or plain containers (named in the message).
    """
    return with_network(load_weights(path), Path(path), given)


def load_weights(path: str | Path) -> dict[str, Any]:
    """As `load_checkpoint`, but the file may hold weights alone, and its config is as it stands.

    Returns:
        At least `model_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if path.suffix in ENGINE_FILES:
        raise InputError(
            f"{path}: an {path.suffix} file can be run as a model, but gives no weights; use "
            "the .pth or .safetensors file that it was made of"
        )
    check_kind(path)
    content = read_safetensors(path) if path.suffix == SAFETENSORS else _read_pickled(path)
    return weights_of(content, path)


def check_kind(path: Path) -> None:
    """Raises InputError if a file is something else than a checkpoint of the kind of its name."""
    try:
        kind = foreign_kind(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if kind:
        raise InputError(f"{path}: {kind}")


def is_mapped(path: Path) -> bool:
    """Whether reading a checkpoint leaves its tensors on disk until they are looked at."""
    if path.suffix == SAFETENSORS:
        return True
    return is_zip(path) and check_zip(path)


def _read_pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pickle protocol of garbage
            if is_tar(path):
                return read_tar(path)
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=is_mapped(path) or None
            )
    except _UNREADABLE as error:
        if re.search(r"Unsupported operand (140|147|148|149)\b", str(error)):
            raise InputError(
                f"{path}: pickled by protocol 4 or later, which is not read; save it again by "
                "torch.save with its default pickle_protocol"
            ) from error
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


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split("WeightsUnpickler error:")[-1].split("Check the")[0].split())
    readable = re.search(r"[A-Za-z]{3}", text)
    return re.split(r"(?<=[a-z])[.:] ", text)[0][:120] if readable else type(error).__name__
