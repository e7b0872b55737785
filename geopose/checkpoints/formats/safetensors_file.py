""".safetensors files: the same content as a .pth for inference, with nothing to unpickle in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geopose.checkpoints.formats.facts import METADATA_KEY, facts_from_text, facts_to_text
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path


def write_safetensors(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes weights and facts atomically.

    Raises:
        RunError: the file cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    metadata = {"format": "pt", METADATA_KEY: facts_to_text(facts)}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:
            raise RunError(f"cannot write {path}: {error}") from error


def read_safetensors(path: Path) -> dict[str, Any]:
    """The facts and `model_state_dict`, or, of a file that is not from here, the weights alone.

    Tensors are mapped from the file.

    Raises:
        InputError: not such a file, or truncated.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); copy or download it again"
        ) from error
    facts = {} if text is None else facts_from_text(text, str(path))
    return {**facts, "model_state_dict": weights}
