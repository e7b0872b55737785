"""From a config's models to one predictor on a device, and what its numbers depend on."""

from dataclasses import replace

import torch

from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.checkpoints.formats.pth import ONNX
from geopose.checkpoints.load import load_model
from geopose.errors import InputError
from geopose.inference.config import InferenceConfig, ModelEntry
from geopose.inference.engines.backends import OPENVINO, TORCH, prepare, resolve_backend
from geopose.inference.engines.engine import Engine
from geopose.inference.engines.folding import folded
from geopose.inference.engines.precision import BF16, FP16, TF32, resolve_precision
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.system.devices import allow_tf32
from geopose.system.memory import keep_freed_memory
from geopose.system.optional import needs_extra


def load_entry(entry: ModelEntry) -> LoadedModel:
    """The model of one entry of `ensemble.models`; InputError if its files cannot be used."""
    loaded = _load(entry)
    return loaded if entry.downsample is None else loaded.reduced_by(entry.downsample)


def _load(entry: ModelEntry) -> LoadedModel:
    first, *others = entry.files
    if first.suffix != ONNX or others:
        return load_model(entry.files, entry.network)
    with needs_extra("onnx", str(first)):  # here, as it takes a second and is rarely needed
        from geopose.inference.engines.onnx_engine import load_onnx
    return load_onnx(first, entry.network)


def known_gsd(config: InferenceConfig) -> tuple[float, float] | None:
    """(finest, coarsest) ground sampling, metres per pixel, that all models of a config know.

    Where they have nothing in common, from the finest of any to the coarsest; None = unknown.

    Raises:
        InputError: a checkpoint that cannot be used.
    """
    ranges = [r for e in config.models if (r := load_entry(e).gsd_range_m) is not None]
    if not ranges:
        return None
    finest, coarsest = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if finest > coarsest:
        finest, coarsest = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return finest, coarsest


def build_ensemble(config: InferenceConfig, device: torch.device, pixels: int = 0) -> PoseEnsemble:
    """The predictor of a config, ready on the device.

    Args:
        config: models, views, backend, precision.
        device: where the networks run.
        pixels: of all images that this process will predict; a few are not worth converting for.

    Raises:
        InputError: a checkpoint that cannot be used.
    """
    tta = Tta.from_name(config.tta)
    precision = resolve_precision(config.precision, device)
    backend = resolve_backend(config.backend, device, precision, pixels * len(tta.views))
    if device.type == "cpu":
        if backend != OPENVINO:  # which keeps its own, and gives it back when it should
            keep_freed_memory()
    else:
        allow_tf32(
            precision == TF32
        )  # beside 16 bits, what stays in float32 is there for its digits
        torch.backends.cudnn.benchmark = True  # few sizes, many images: the search for kernels pays
    members = [_member(entry, backend, precision, device) for entry in config.models]
    return PoseEnsemble(members, tta, config.tta_mode, device).eval()


def _member(entry: ModelEntry, backend: str, precision: str, device: torch.device) -> Member:
    loaded = load_entry(entry)
    model = loaded.model
    if device.type == "cuda" and backend == TORCH and not isinstance(model, Engine):
        model = folded(model)  # a compiler does it by itself
    return Member(replace(loaded, model=prepare(model, backend, precision)))


def _check_onnx(config: InferenceConfig, precision: str) -> None:
    """An .onnx file computes in the numbers it was exported in, whatever a config says."""
    if precision not in (BF16, FP16):
        return
    for number, entry in enumerate(config.models):
        if entry.files[0].suffix == ONNX:
            raise InputError(
                f"{config.source}: ensemble.models[{number}]: {entry.files[0]} computes in float32 "
                f"and inference.precision is {config.precision}; leave that out, or use the .pth"
            )


def numerics(config: InferenceConfig, device: torch.device) -> dict[str, str]:
    """How a config computes on a device, models and views apart; short words.

    Predictions of unequal numerics never share an archive, so whatever changes a prediction by more
    than rounding belongs here, as it is after defaults are resolved. Engines do the same but for
    the order of sums; but OpenVINO rounds to bf16 at other places than torch, compiled or not.

    Raises:
        InputError: a backend that this machine does not have, or a precision that one of the models
            does not compute in.
    """
    precision = resolve_precision(config.precision, device)
    _check_onnx(config, precision)
    backend = resolve_backend(config.backend, device, precision)
    if precision == BF16 and device.type == "cpu":
        return {"precision": precision, "engine": OPENVINO if backend == OPENVINO else TORCH}
    return {"precision": precision}
