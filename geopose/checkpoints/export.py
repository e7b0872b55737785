"""A loaded network in, a file for inference out: without optimizer state, under today's names."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.checkpoints.formats.safetensors_file import write_safetensors
from geopose.errors import InputError
from geopose.files.lock import locked
from geopose.files.writable import check_file_target
from geopose.system.optional import needs_extra
from geopose.words import ONNX, PTH, SAFETENSORS

_Writer = Callable[[Path, LoadedModel, Mapping[str, Any]], None]


def _write_pth(path: Path, loaded: LoadedModel, facts: Mapping[str, Any]) -> None:
    # A file that says nothing about its labels must not begin to: their meaning would change.
    labels = {"label_downsample": facts.get("label_downsample")}
    save_checkpoint(path, {**facts, **labels, "model_state_dict": loaded.model.state_dict()})


def _write_safetensors(path: Path, loaded: LoadedModel, facts: Mapping[str, Any]) -> None:
    write_safetensors(path, loaded.model.state_dict(), facts)


def _write_onnx(path: Path, loaded: LoadedModel, facts: Mapping[str, Any]) -> None:
    with needs_extra("onnx", str(path)):  # here, as it takes a second and is rarely needed
        import onnxscript  # noqa: F401  torch's exporter is built on it

        from geopose.checkpoints.formats.onnx_file import export_onnx
    export_onnx(path, loaded, facts)


WRITERS: dict[str, _Writer] = {
    PTH: _write_pth, SAFETENSORS: _write_safetensors, ONNX: _write_onnx,
}  # fmt: skip


def check_target(path: Path, force: bool, suffixes: tuple[str, ...] = tuple(WRITERS)) -> None:
    """Finds out before any work whether a file can be written.

    Raises:
        InputError: unknown kind of file, one that is there already (unless `force`), or a place
            that cannot be written to.
    """
    if path.suffix not in suffixes:
        raise InputError(f"{path}: the name must end with {' or '.join(suffixes)}")
    check_file_target(path, "output")
    if path.exists() and not force:
        raise InputError(f"{path}: is there already; give another name, or --force")


def write_network(path: Path, loaded: LoadedModel, facts: Mapping[str, Any]) -> None:
    """Writes a network in the format of the file's name.

    Args:
        path: one of the suffixes in `WRITERS`.
        loaded: the network.
        facts: of its checkpoint, see `facts_of`.

    Raises:
        RunError: the file cannot be written.
    """
    with locked_target(path):
        WRITERS[path.suffix](path, loaded, facts)


def write_for_deepness(
    path: Path, loaded: LoadedModel, facts: Mapping[str, Any], gsd_m: float
) -> None:
    """Writes the heights of a network for the plugin; see `export_for_deepness`."""
    with needs_extra("onnx", str(path)):
        import onnxscript  # noqa: F401

        from geopose.checkpoints.deepness import export_for_deepness
    with locked_target(path):
        export_for_deepness(path, loaded, facts, gsd_m)


def locked_target(path: Path) -> AbstractContextManager[None]:
    """Keeps other programs of this kind from writing the file meanwhile."""
    return locked(path.parent, str(path), f".{path.name[:80]}.lock")
