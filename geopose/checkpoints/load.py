"""A checkpoint file (or several to average) in, a network ready for inference out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from geopose.checkpoints.files import LABELS_CONVERTED, load_checkpoint
from geopose.checkpoints.weights import average_checkpoints, current_names, load_weights_strict
from geopose.errors import InputError
from geopose.models.build import build_model, channel_order


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
        weights = current_names(payloads[0]["model_state_dict"], str(files[0]))
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
