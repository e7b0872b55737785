"""From a config's models to one predictor on a device, and what its numbers depend on."""

from dataclasses import replace

import torch

from geopose.checkpoints.load import LoadedModel, load_model
from geopose.inference.config import InferenceConfig, ModelEntry
from geopose.inference.ensemble import Member, PoseEnsemble
from geopose.inference.tta import Tta


def load_entry(entry: ModelEntry) -> LoadedModel:
    """The model of one entry of `ensemble.models`; InputError if its files cannot be used."""
    loaded = load_model(entry.files)
    return loaded if entry.downsample is None else replace(loaded, downsample=entry.downsample)


def build_ensemble(config: InferenceConfig, device: torch.device) -> PoseEnsemble:
    """The predictor of a config, ready on the device.

    Raises:
        InputError: a checkpoint that cannot be used.
    """
    half = config.fp16 and device.type == "cuda"
    members = [Member(load_entry(entry), half) for entry in config.models]
    return PoseEnsemble(members, Tta.from_name(config.tta), config.tta_mode).to(device).eval()


def numerics(config: InferenceConfig, device: torch.device) -> dict[str, str]:
    """How a config computes on a device, models and views apart; short words.

    Predictions of unequal numerics never share an archive, so whatever changes a prediction by more
    than rounding belongs here, as it is after defaults are resolved.
    """
    half = config.fp16 and device.type == "cuda"
    return {"backend": "eager", "precision": "fp16" if half else "fp32"}
