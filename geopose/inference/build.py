"""From a config's models to one predictor on a device, and what its numbers depend on."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from geopose.checkpoints.formats.given import GivenNetwork
from geopose.checkpoints.formats.int8_file import calibration_in_words
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.checkpoints.formats.pth import ENGINE_FILES
from geopose.checkpoints.load import load_model, read_facts
from geopose.errors import InputError
from geopose.inference.config import InferenceConfig, ModelEntry
from geopose.inference.engines.backends import OPENVINO, TORCH, prepare, resolve_backend
from geopose.inference.engines.engine import Engine
from geopose.inference.engines.folding import folded
from geopose.inference.engines.int8_engine import Int8Network
from geopose.inference.engines.precision import BF16, FP16, TF32, resolve_precision
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.system.devices import allow_tf32, has_int8_sums
from geopose.system.memory import keep_freed_memory
from geopose.system.optional import needs_extra
from geopose.words import INT8, ONNX

logger = logging.getLogger(__name__)


def load_entry(entry: ModelEntry) -> LoadedModel:
    """The model of one entry of `ensemble.models`; InputError if its files cannot be used."""
    loaded = _load(entry)
    return loaded if entry.downsample is None else loaded.reduced_by(entry.downsample)


def _load(entry: ModelEntry) -> LoadedModel:
    first, *others = entry.files
    if first.suffix not in ENGINE_FILES or others:
        return load_model(entry.files, entry.network)
    return load_engine(first, entry.network)


def load_engine(path: Path, given: GivenNetwork | None = None) -> LoadedModel:
    """The network of an .onnx or .int8 file, ready to run, and what the file says of it.

    Args:
        path: the file.
        given: a network that somebody named beside it, which is refused.

    Raises:
        InputError: a file that says nothing of its network, or that its engine cannot run.
    """
    facts = read_facts(path, given)
    if path.suffix == INT8:
        return LoadedModel.from_facts(Int8Network(path, facts["quantized"]), facts, str(path))
    with needs_extra("onnx", str(path)):  # here, as it takes a second and is rarely needed
        from geopose.inference.engines.onnx_engine import OnnxNetwork
    return LoadedModel.from_facts(OnnxNetwork(path), facts, str(path))


def known_gsd(config: InferenceConfig) -> tuple[float, float] | None:
    """(finest, coarsest) ground sampling, metres per pixel, that all models of a config know.

    Where they have nothing in common, from the finest of any to the coarsest; None = unknown.
    Networks that every image is brought to one gsd for do so themselves and have no say beside
    others; where there are no others, it is theirs, if they agree.

    Raises:
        InputError: a checkpoint that cannot be used.
    """
    models = [load_entry(entry) for entry in config.models]
    common = {model.gsd_m for model in models}
    if len(common) == 1 and None not in common:
        (gsd_m,) = common
        return gsd_m, gsd_m  # type: ignore[return-value]
    ranges = [m.gsd_range_m for m in models if m.gsd_m is None and m.gsd_range_m is not None]
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


def _check_engine_files(config: InferenceConfig, device: torch.device, precision: str) -> None:
    """An .onnx file computes in the numbers it was exported in, whatever a config says; an .int8
    file on a CPU."""
    for number, entry in enumerate(config.models):
        file = entry.files[0]
        where = f"{config.source}: ensemble.models[{number}]: {file}"
        if file.suffix == ONNX and precision in (BF16, FP16):
            raise InputError(
                f"{where} computes in float32 and inference.precision is {config.precision}; leave "
                "that out, or use the .pth"
            )
        if file.suffix == INT8 and device.type != "cpu":
            raise InputError(
                f"{where} computes on a CPU, and this run is on {device}; use the file that it was "
                "made of, or set CUDA_VISIBLE_DEVICES to nothing"
            )


def say_calibrations(config: InferenceConfig) -> None:
    """Logs which models compute in 8 bits, and what each was calibrated on."""
    for file in dict.fromkeys(entry.files[0] for entry in config.models):
        if file.suffix == INT8:
            quantized = read_facts(file)["quantized"]
            logger.info("%s: in int8, %s", file, calibration_in_words(quantized))
            if not has_int8_sums():
                logger.warning(
                    "this processor has no VNNI: int8 is slow on it, and large values are cut off"
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
    _check_engine_files(config, device, precision)
    backend = resolve_backend(config.backend, device, precision)
    in_int8 = any(entry.files[0].suffix == INT8 for entry in config.models)
    words = {"precision": f"int8 and {precision}" if in_int8 else precision}
    if precision == BF16 and device.type == "cpu":
        words["engine"] = OPENVINO if backend == OPENVINO else TORCH
    return words
