"""The choice of an engine: a backend's name and a loaded network in, the engine out."""

import logging

import torch
from torch import nn

from geopose.errors import InputError, RunError, one_line
from geopose.inference.engines.engine import Engine
from geopose.inference.engines.openvino_engine import OpenVinoNetwork, has_openvino
from geopose.inference.engines.precision import BF16
from geopose.inference.engines.torch_engine import CompiledNetwork, TorchNetwork

logger = logging.getLogger(__name__)

AUTO, TORCH, COMPILE, OPENVINO = "auto", "torch", "compile", "openvino"
BACKENDS = (AUTO, TORCH, COMPILE, OPENVINO)
OLD_NAMES = {"eager": TORCH}  # in older configs
# Pixels (of all views of all images) from which converting for OpenVINO pays: that costs what 1.5
# (sample_unet), 2 (b6), 4 (v2s) or 10 (mobilenet_unet) megapixels save. Too early loses seconds,
# too late a minute.
LEAST_PIXELS_TO_CONVERT = 4_000_000


def resolve_backend(wanted: str, device: torch.device, precision: str, pixels: int = 0) -> str:
    """The backend that a config means.

    On a CPU `auto` is OpenVINO, if that is installed and the run is long enough to pay for the
    conversion; in bf16, where engines round at different places, whatever the length, so that a run
    that is started again goes on as it began. Else it is torch, on a GPU too: that compiling pays
    there has not been measured (scripts/gpu_check.sh does).

    Args:
        wanted: of the config.
        device: where the networks run.
        precision: as resolved for the device.
        pixels: views x pixels of the images of one process.

    Raises:
        InputError: OpenVINO is wanted but not installed, or not on a CPU.
    """
    if wanted == AUTO:
        return _automatic(device, precision, pixels)
    if wanted == OPENVINO and device.type != "cpu":
        raise InputError(
            f"inference.backend: openvino computes on a CPU, and this run is on {device}; use "
            f"auto, {TORCH} or {COMPILE}"
        )
    if wanted == OPENVINO and not has_openvino():
        raise InputError(
            "inference.backend: the openvino package is not installed; pip install openvino, or "
            f"use auto, {TORCH} or {COMPILE}"
        )
    return wanted


def _automatic(device: torch.device, precision: str, pixels: int) -> str:
    pays = precision == BF16 or pixels >= LEAST_PIXELS_TO_CONVERT
    return OPENVINO if device.type == "cpu" and pays and has_openvino() else TORCH


def prepare(model: nn.Module, backend: str, precision: str) -> Engine:
    """An engine for a network; still on the host.

    Args:
        model: from a checkpoint, float32 in eval mode; it may be changed in place. One that is an
            engine already (an .onnx or .int8 file) comes back.
        backend: "torch", "compile" or "openvino"; as resolved for the device.
        precision: as resolved for the device.

    Raises:
        RunError: OpenVINO does not know a layer, and the precision is bf16. In float32 the network
            runs without it; a warning says so.
    """
    if isinstance(model, Engine):
        model.computes_in(precision)
        return model
    if backend == OPENVINO:
        try:
            return OpenVinoNetwork(model, precision)  # type: ignore[arg-type]
        except Exception as error:  # a layer that it does not know; whatever it raises
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
            if precision == BF16:  # the run has said that OpenVINO does the rounding
                raise RunError(
                    f"OpenVINO cannot run a network ({reason}); use inference.backend={TORCH}"
                ) from error
            logger.warning("OpenVINO failed, going on without it: %s", reason)
    engine = CompiledNetwork if backend == COMPILE else TorchNetwork
    return engine(model, precision)
