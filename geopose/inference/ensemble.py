"""One or many models as one predictor: RGB bytes and gsd in, the averaged prediction out.

Models of different channel order and image reduction work side by side, because each member takes
the same 8-bit RGB image and makes its own input from it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.checkpoints.load import LoadedModel
from geopose.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from geopose.errors import InputError
from geopose.inference.tta import Prediction, PredictionMean, Tta

TTA_PER_MODEL = "model"
TTA_PER_ENSEMBLE = "ensemble"
TTA_ORDERS = (TTA_PER_MODEL, TTA_PER_ENSEMBLE)


def check_tta_order(name: object) -> None:
    """Raises InputError unless `name` is a known order of averaging."""
    if name not in TTA_ORDERS:
        known = ", ".join(TTA_ORDERS)
        raise InputError(f"ensemble.tta_mode: unknown value {name!r}, use one of {known}")


class Member(nn.Module):
    """A loaded model with its own way from an RGB image to its input and back.

    Args:
        loaded: the model and what its checkpoint says.
        half: run the network under float16 autocast (CUDA only).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: LoadedModel, half: bool = False) -> None:
        super().__init__()
        self.model = loaded.model
        self.channel_order = loaded.channel_order
        self.downsample = loaded.downsample
        self.scale_is_downsampled = loaded.scale_is_downsampled
        self.half_precision = half
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            planes = 255.0 * torch.tensor(values, dtype=torch.float32).reshape(1, 3, 1, 1)
            self.register_buffer(name, planes, persistent=False)

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        """Prediction at the size of the image.

        Args:
            image: RGB, N x 3 x H x W, uint8 (or the same range as float, after a zoom).
            gsd_m: N x 1, metres per pixel of this image.
        """
        planes = (image if self.channel_order == "rgb" else image.flip(1)).float()
        planes = (planes - self.mean) / self.std
        if self.downsample == 1:
            return self._run(planes, gsd_m)
        return self._run_reduced(planes, gsd_m)

    def _run(self, planes: Tensor, gsd_m: Tensor) -> Prediction:
        with torch.autocast(planes.device.type, torch.float16, enabled=self.half_precision):
            return Prediction.from_output(self.model(planes, gsd_m))

    def _run_reduced(self, planes: Tensor, gsd_m: Tensor) -> Prediction:
        """Reduces by area, predicts, enlarges; an edge that does not divide is repeated."""
        factor = self.downsample
        height, width = planes.shape[-2:]
        planes = F.pad(planes, (0, -width % factor, 0, -height % factor), mode="replicate")
        pixels = factor if self.scale_is_downsampled else 1  # see LoadedModel
        reduced = self._run(F.avg_pool2d(planes, factor), gsd_m * pixels)
        return Prediction(
            self._enlarge(reduced.agl_m)[..., :height, :width],
            self._enlarge(reduced.magnitude_px)[..., :height, :width] * pixels,
            reduced.scale_px_per_m * pixels,
            reduced.direction,
        )

    def _enlarge(self, maps: Tensor) -> Tensor:
        return F.interpolate(
            maps, scale_factor=float(self.downsample), mode="bilinear", align_corners=False
        )


class PoseEnsemble(nn.Module):
    """Members averaged with test-time augmentation around each of them or around their mean.

    Args:
        members: at least one, each (RGB image N x 3 x H x W, gsd_m N x 1) -> Prediction.
        tta: the views.
        tta_order: "model" (views of a model, then models) or "ensemble" (models of a view, then
            views). Directions are normalised before either mean.
    """

    def __init__(
        self, members: Sequence[nn.Module], tta: Tta, tta_order: str = TTA_PER_MODEL
    ) -> None:
        super().__init__()
        if not members:
            raise InputError("ensemble.models is empty: name at least one checkpoint")
        check_tta_order(tta_order)
        self.members = nn.ModuleList(members)
        self.tta = tta
        self.tta_order = tta_order

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        """Averaged prediction; image and gsd as for a member."""
        if self.tta_order == TTA_PER_ENSEMBLE:
            return self.tta(self._mean_of_members, image, gsd_m)
        mean = PredictionMean()
        for member in self.members:
            mean.add(self.tta(member, image, gsd_m))
        return mean.result()

    def _mean_of_members(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        mean = PredictionMean()
        for member in self.members:
            mean.add(member(image, gsd_m))
        return mean.result()
