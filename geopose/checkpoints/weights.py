"""Weights of checkpoints: under today's names, into a model that must fit exactly, averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geopose.errors import InputError
from geopose.models.legacy import rename_state_dict

MAX_NAMED = 5  # parameters named in one error line


def current_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
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
        weights = current_names(payload["model_state_dict"], source)
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
