"""From a config's models to one predictor on a device, and what its numbers depend on."""

from dataclasses import replace

import torch

from geopose.checkpoints.load import LoadedModel, load_model
from geopose.inference.config import InferenceConfig, ModelEntry
from geopose.inference.engines.backends import OPENVINO, prepare, resolve_backend, takes
from geopose.inference.engines.precision import BF16, FP32, resolve_precision
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.system.devices import allow_tf32
from geopose.system.memory import keep_freed_memory


def load_entry(entry: ModelEntry) -> LoadedModel:
    """The model of one entry of `ensemble.models`; InputError if its files cannot be used."""
    loaded = load_model(entry.files, entry.network)
    return loaded if entry.downsample is None else replace(loaded, downsample=entry.downsample)


def build_ensemble(config: InferenceConfig, device: torch.device, images: int = 1) -> PoseEnsemble:
    """The predictor of a config, ready on the device.

    Args:
        config: models, views, backend, precision.
        device: where the networks run.
        images: that this process will predict; a few are not worth compiling for.

    Raises:
        InputError: a checkpoint that cannot be used.
    """
    tta = Tta.from_name(config.tta)
    precision = resolve_precision(config.precision, device)
    runs = images * len(config.models) * len(tta.views)
    backend = resolve_backend(config.backend, device, runs)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        allow_tf32(precision != FP32)
        torch.backends.cudnn.benchmark = True  # few sizes, many images: the search for kernels pays
    members = [_member(entry, backend, precision) for entry in config.models]
    return PoseEnsemble(members, tta, config.tta_mode, device).eval()


def _member(entry: ModelEntry, backend: str, precision: str) -> Member:
    loaded = load_entry(entry)
    model = prepare(loaded.model, backend, precision)
    return Member(replace(loaded, model=model), takes(model, precision))


def numerics(config: InferenceConfig, device: torch.device) -> dict[str, str]:
    """How a config computes on a device, models and views apart; short words.

    Predictions of unequal numerics never share an archive, so whatever changes a prediction by more
    than rounding belongs here, as it is after defaults are resolved. Eager and compiled networks do
    the same but for the order of sums, and in 16 bits for digits that compiled ones keep; OpenVINO
    rounds to bf16 at other places.

    Raises:
        InputError: a backend that this machine does not have.
    """
    precision = resolve_precision(config.precision, device)
    backend = resolve_backend(config.backend, device, runs=1)
    if precision == BF16 and device.type == "cpu":
        return {"precision": precision, "engine": OPENVINO if backend == OPENVINO else "torch"}
    return {"precision": precision}
