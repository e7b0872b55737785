"""Weights of checkpoints: under today's names, into a model that must fit exactly, averaged."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from geopose.checkpoints.formats.pth import is_mapped, load_weights
from geopose.errors import InputError
from geopose.models.legacy import rename_state_dict

MAX_NAMED = 5  # parameters named in one error line
GROUP_BYTES = 64 << 20


def current_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights under today's parameter names."""
    try:
        return rename_state_dict(weights)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def check_fit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Compares names and shapes.

    Raises:
        InputError: names missing, extra, mis-shaped or mis-typed parameters.
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
        _named(
            "of another type",
            [
                f"{name} {state_dict[name].dtype} instead of {tensor.dtype}"
                for name, tensor in expected.items()
                if name in state_dict and not _same_kind(state_dict[name], tensor)
            ],
        ),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise InputError(f"{source}: weights do not fit the model: {'; '.join(found)}")


def _same_kind(a: Tensor, b: Tensor) -> bool:
    """Both real numbers of any precision, or of exactly one type."""
    return a.dtype == b.dtype or (a.is_floating_point() and b.is_floating_point())


def load_weights_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Puts weights into a model whose parameters must be exactly these.

    They are copied, or, into a model on the meta device, which has no memory, taken as they are.

    Raises:
        InputError: names missing, extra or mis-shaped parameters; the model is left unchanged.
    """
    check_fit(model, state_dict, source)
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    model.load_state_dict(state_dict, strict=True, assign=on_meta)


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{len(names)} {what}: {', '.join(names[:MAX_NAMED])}{more}"


def mean_weights(paths: Sequence[Path], source: str) -> dict[str, Tensor]:
    """The weights of a file, or the mean of several files, accumulated in float64.

    Files are read a group of parameters at a time, so that besides the result only a small part of
    one file is in memory, however many there are and whatever else they hold.

    Args:
        paths: checkpoint files.
        source: their names, for messages.

    Returns:
        Weights under today's names, in the first file's types; a mean of 16-bit numbers in float32,
        because it has more digits than they have. Of counts of batches, which have no mean, the
        largest is taken; other integer buffers must be the same in all files.

    Raises:
        InputError: an unreadable file; names, shapes or integer buffers that differ.
    """
    first = _weights_of(paths[0])
    for path in paths[1:]:
        _check_alike(first, _weights_of(path), source)
    mapped = all(is_mapped(path) for path in paths)
    groups = _groups(first) if mapped else [list(first)]
    several = len(paths) > 1
    types = {n: _mean_type(t.dtype) if several else t.dtype for n, t in first.items()}
    del first
    mean: dict[str, Tensor] = {}
    for names in groups:
        for name, total in _sum(paths, names, source).items():
            counts = not total.is_floating_point()
            mean[name] = total if counts else (total / len(paths)).to(types[name])
    return mean


def _mean_type(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _weights_of(path: Path) -> dict[str, Tensor]:
    return current_names(load_weights(path)["model_state_dict"], str(path))


def _groups(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Names in the order of the file, cut where a group has reached its size."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if size > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.numel() * tensor.element_size()
    return groups


def _check_alike(first: Mapping[str, Tensor], other: Mapping[str, Tensor], source: str) -> None:
    lonely = sorted(set(first) ^ set(other))
    if lonely:
        more = f" and {len(lonely) - MAX_NAMED} more" if len(lonely) > MAX_NAMED else ""
        raise InputError(
            f"{source}: cannot be averaged, parameters in one file only: "
            f"{', '.join(lonely[:MAX_NAMED])}{more}"
        )
    for name, tensor in first.items():
        if other[name].shape != tensor.shape or not _same_kind(other[name], tensor):
            raise InputError(f"{source}: cannot be averaged, {name} differs in shape or type")


def _sum(paths: Sequence[Path], names: Sequence[str], source: str) -> dict[str, Tensor]:
    """Sum of some parameters over all files, in memory of its own."""
    total: dict[str, Tensor] = {}
    for path in paths:
        weights = _weights_of(path)
        for name in names:
            value = weights[name]
            if value.is_floating_point() and len(paths) > 1:
                value = value.double()
            if name not in total:
                total[name] = value.clone(memory_format=torch.contiguous_format)
            elif value.is_floating_point():
                total[name] += value
            elif name.endswith("num_batches_tracked"):
                total[name] = torch.maximum(total[name], value)
            elif not torch.equal(total[name], value):
                raise InputError(f"{source}: cannot be averaged, integer buffer {name} differs")
    return total
