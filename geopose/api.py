"""The library in Python: a model's name in, an object that predicts arrays out."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose.distributed import local_device
from geopose.errors import InputError
from geopose.inference.build import build_ensemble, numerics
from geopose.inference.config import InferenceConfig
from geopose.inference.images.job import job_for
from geopose.inference.named_models import resolve_model
from geopose.inference.pipeline.device_copy import DeviceCopy
from geopose.inference.pipeline.pipeline import predict
from geopose.inference.predict.tta import Prediction
from geopose.inference.predict.unknown_gsd import UnknownGsd, UnknownGsds
from geopose.inference.resume.manifest import Manifest
from geopose.inference.run import run_inference
from geopose.system.devices import use_device

logger = logging.getLogger(__name__)

AS_CONFIGURED = "as configured"


class PredictedPose(NamedTuple):
    """What is predicted for an image.

    Attributes:
        agl_m: H x W float32, height in metres of what each pixel shows.
        scale_px_per_m: pixels of flow per metre of height.
        angle_rad: direction of the flow in [0, 2 pi): 0 points down, pi / 2 right, from where a
            surface is seen to its ground point.
    """

    agl_m: NDArray[np.float32]
    scale_px_per_m: float
    angle_rad: float


class Model:
    """Models that predict together, on a device; made by `load`.

    Attributes:
        config: what they are.
        device: where they are.
        name: what they were asked for by; None = the default.
    """

    def __init__(
        self, config: InferenceConfig, device: torch.device, name: str | None = None
    ) -> None:
        self.config = config
        self.device = device
        self.name = name
        use_device(device)
        numerics(config, device)  # says what cannot be had, such as 16 bits of an .onnx file
        self._ensemble = build_ensemble(config, device)
        self._device_copy = DeviceCopy(device)
        self._warned_of: set[str] = set()

    def predict(self, rgb: NDArray[np.uint8], gsd_m: float) -> PredictedPose:
        """Heights and flow of one image, all of it at once and in memory.

        Args:
            rgb: H x W x 3 uint8, channels R, G, B; any size that the device's memory holds.
            gsd_m: metres of ground per pixel. One that a network has not learned from is warned of,
                once; `predict_file` resamples such images.

        Raises:
            InputError: not such an image, or no such gsd.
            RunError: out of memory.
        """
        rgb = np.asarray(rgb)
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise InputError(
                f"rgb is {rgb.dtype} of shape {rgb.shape}, must be uint8 of H x W x 3, channels "
                "R, G, B"
            )
        if not isinstance(gsd_m, Real) or not 0 < gsd_m < math.inf:
            raise InputError(f"gsd_m is {gsd_m!r}, must be metres per pixel, more than 0")
        self._warn_once(self._ensemble.unknown_gsd(float(gsd_m), rgb.shape[:2]))
        with torch.inference_mode():
            arrived = predict(
                self._ensemble,
                self._device_copy,
                [np.ascontiguousarray(rgb)],
                [float(gsd_m)],
                _fields,
            )
            agl_m, flow = arrived()
        scale_px_per_m, angle_rad = flow[0].tolist()
        return PredictedPose(agl_m[0, 0].numpy(), scale_px_per_m, angle_rad)

    def _warn_once(self, unknown: Sequence[UnknownGsd]) -> None:
        """Of each network's first image that it does not know."""
        found = UnknownGsds()
        found.add("rgb", [each for each in unknown if each.source not in self._warned_of])
        self._warned_of |= {each.source for each in unknown}
        for line in found.lines():
            logger.warning("%s", line)

    def predict_file(self, path: str | Path, out: str | Path, **options: object) -> list[Path]:
        """Products of an image file of any kind and size, as predict.py writes them.

        Args:
            path: the image.
            out: folder of the products, made if missing; what is finished in it is kept.
            options: those of predict.py, such as `products="agl,rectified"`, `gsd=0.35`,
                `flow="model"`, `sensor="120,25"`, `map="utm"`, `ground_height=-20`,
                `uint16_cm=True`.

        Returns:
            The image's products.

        Raises:
            InputError: an unknown option, or an image that cannot be used.
            RunError: the image failed, or a product cannot be written.
        """
        job = job_for(self.config, self.name, Path(path), Path(out), **options)
        run_inference(replace(job, ready=self._ensemble))
        (record,) = (Manifest.load(Path(out)).records[name] for name in job.images)
        return [Path(out) / name for name in record.files]


def _fields(prediction: Prediction, _spread_m: Tensor | None) -> list[Tensor]:
    flow = torch.cat([prediction.scale_px_per_m, prediction.angle_rad], dim=1).double()
    return [prediction.agl_m.float(), flow]


def load(
    model: str | Path | None = None,
    *,
    tta: str | None = AS_CONFIGURED,
    precision: str | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """Models by name, on the GPU if there is one.

    Args:
        model: `demo`, `published-2`, `published-4`, `published-9`, an inference YAML, or the path
            or URL of a checkpoint; None = `published-2`.
        tta: the views that are averaged, such as "d4"; None = the image as it is. Unless said, as
            the model's config says (d4 for a checkpoint).
        precision: such as "fp32" or "bf16"; None = as the model's config says.
        device: such as "cpu" or "cuda:1"; None = the first GPU, else the CPU.

    Raises:
        InputError: no such model, a file that cannot be used, or an unknown choice.
        RunError: a download broke off again and again.
    """
    name = None if model is None else str(model)
    return Model(resolve_model(name, _overrides(tta, precision)), _device(device), name)


def _overrides(tta: str | None, precision: str | None) -> Sequence[str]:
    said = [] if tta == AS_CONFIGURED else [f"ensemble.tta={'null' if tta is None else tta}"]
    return said if precision is None else [*said, f"inference.precision={precision}"]


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return local_device()
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # an Assertion: torch was built without CUDA
        raise InputError(f"device {device}: cannot be used here; give cpu, or leave it out") from (
            error
        )
    return chosen
