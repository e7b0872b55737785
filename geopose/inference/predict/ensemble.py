"""One or many models as one predictor: RGB bytes and gsd in, the averaged prediction out.

Models of different channel order and image reduction work side by side, because each member takes
the same 8-bit RGB image and makes its own input from it. The views of an image are made once and
shown to all members; as many go through a member at a time as the device's memory holds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.augment.common_gsd import LARGEST_ZOOM, Resize
from geopose.checkpoints.formats.facts import NO_GAINS
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.errors import InputError, RunError
from geopose.inference.predict.tta import (
    HeightSpread,
    Look,
    Prediction,
    PredictionMean,
    Tta,
    real_directions,
)
from geopose.inference.predict.unknown_gsd import UnknownGsd, unknown_gsd
from geopose.inference.predict.view_batches import ViewBatches
from geopose.inference.predict.weight_offload import WeightOffload
from geopose.system.devices import is_out_of_memory

TTA_PER_MODEL = "model"
TTA_PER_ENSEMBLE = "ensemble"
TTA_MODES = (TTA_PER_MODEL, TTA_PER_ENSEMBLE)
_MEAN_BYTES = 8  # of a pixel: height and magnitude


def do_nothing() -> None:
    """What is called where nobody wants to be told."""


def check_tta_mode(name: object) -> None:
    """Raises InputError unless `name` is a known order of averaging."""
    if name not in TTA_MODES:
        known = ", ".join(TTA_MODES)
        raise InputError(f"ensemble.tta_mode: unknown value {name!r}, use one of {known}")


def held_bytes(tta: Tta, tta_mode: str, shape: torch.Size) -> int:
    """Memory that an ensemble holds beside the network at work: all views, and unfinished means.

    Args:
        tta: the views.
        tta_mode: of averaging.
        shape: of the images, N x 3 x H x W.
    """
    image = torch.empty(shape, dtype=torch.uint8, device="meta")
    looks = [view.look(image, torch.empty(shape[0], 1, device="meta")) for view in tta.views]
    means = len(looks) if tta_mode == TTA_PER_ENSEMBLE else 2
    return sum(look.image.nbytes for look in looks) + means * _MEAN_BYTES * image[:, 0].numel()


class Member(nn.Module):
    """A loaded model with its own way from an RGB image to its input and back.

    Args:
        loaded: the model and what its checkpoint says.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = loaded.model
        self.uses_torch_memory = getattr(loaded.model, "uses_torch_memory", True)
        self.source = loaded.source
        self.channel_order = loaded.channel_order
        self.downsample = loaded.downsample
        self.scale_is_downsampled = loaded.scale_is_downsampled
        self.gains = loaded.gains
        self.gsd_range_m = loaded.gsd_range_m
        self.gsd_m = loaded.gsd_m
        for name, planes in zip(("mean", "std"), loaded.normalization.planes(), strict=True):
            self.register_buffer(name, 255.0 * planes, persistent=False)

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        """Prediction at the size of the image.

        Args:
            image: RGB, N x 3 x H x W, uint8 (or the same range as float, after a zoom).
            gsd_m: N x 1, metres per pixel of this image.
        """
        if self.gsd_m is None:
            return self._predict(image, gsd_m)
        if len(set(gsd_m.flatten().tolist())) == 1:
            return self._resized(image, gsd_m)
        parts = zip(image.split(1), gsd_m.split(1), strict=True)
        return Prediction.cat([self._resized(*part) for part in parts])

    def at_common_gsd(self, image: Tensor, gsd_m: Tensor) -> Look:
        """Images of one gsd, brought to the one that the network is shown, if there is one.

        Raises:
            InputError: they would be enlarged beyond all use.
        """
        height, width = image.shape[-2:]
        own_m = float(gsd_m[0])
        resize = Resize.between((height, width), own_m, self.gsd_m)
        if resize.zoom > LARGEST_ZOOM:
            raise InputError(
                f"{self.source}: images are brought to {self.gsd_m:g} m per pixel for it, and one "
                f"of {own_m:g} m would be enlarged {resize.zoom:.0f} times; use another network"
            )
        return Look(resize.image(image.float()), gsd_m / resize.zoom)

    def _resized(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        """Prediction of images of one gsd, which the network is shown at another."""
        look = self.at_common_gsd(image, gsd_m)
        found = self._predict(look.image, look.gsd_m)
        return found.resized(image.shape[-2:], float(gsd_m[0] / look.gsd_m[0]))

    def _predict(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        found = self._run(*self.shown(image, gsd_m))
        return found if self.downsample == 1 else self._at_size(found, image.shape[-2:])

    def shown(self, image: Tensor, gsd_m: Tensor) -> tuple[Tensor, Tensor]:
        """What the network takes of an image: planes in its order, normalised, and their gsd.

        They are reduced by area; an edge that does not divide is repeated.
        """
        planes = (image if self.channel_order == "rgb" else image.flip(1)).float()
        planes = (planes - self.mean) / self.std
        if self.downsample == 1:
            return planes, gsd_m
        factor = self.downsample
        height, width = planes.shape[-2:]
        planes = F.pad(planes, (0, -width % factor, 0, -height % factor), mode="replicate")
        return F.avg_pool2d(planes, factor), gsd_m * self._pixels

    def _run(self, planes: Tensor, gsd_m: Tensor) -> Prediction:
        """Raises RunError for outputs of another size than the image: they are none of it."""
        found = Prediction.from_output(self.model(planes, gsd_m))
        count, _, height, width = planes.shape
        maps, numbers = torch.Size((count, 1, height, width)), torch.Size((count, 1))
        wanted = Prediction(maps, maps, numbers, torch.Size((count, 2)))  # type: ignore[arg-type]
        for name, value, shape in zip(Prediction._fields, found, wanted, strict=True):
            if value.shape != shape:
                raise RunError(
                    f"{self.source}: gives {name} of {list(value.shape)} for images of "
                    f"{list(planes.shape)}, must be {list(shape)}; use another file"
                )
        return self._calibrated(found._replace(direction=real_directions(found.direction)))

    def _calibrated(self, found: Prediction) -> Prediction:
        """With the gains that the model's file says."""
        if self.gains == NO_GAINS:
            return found
        agl, magnitude = self.gains
        return found._replace(
            agl_m=found.agl_m * agl,
            magnitude_px=found.magnitude_px * magnitude,
            scale_px_per_m=found.scale_px_per_m * (magnitude / agl),
        )

    @property
    def _pixels(self) -> int:
        """Of the image for one that its scale and gsd belong to, see LoadedModel."""
        return self.downsample if self.scale_is_downsampled else 1

    def _at_size(self, reduced: Prediction, size: torch.Size) -> Prediction:
        """The prediction of a reduced image, enlarged."""
        height, width = size
        return reduced._replace(
            agl_m=self._enlarge(reduced.agl_m)[..., :height, :width],
            magnitude_px=self._enlarge(reduced.magnitude_px)[..., :height, :width] * self._pixels,
            scale_px_per_m=reduced.scale_px_per_m * self._pixels,
        )

    def _enlarge(self, maps: Tensor) -> Tensor:
        return F.interpolate(
            maps, scale_factor=float(self.downsample), mode="bilinear", align_corners=False
        )


def check_views(model: Any, tta: Tta) -> None:
    """Raises InputError for views of several sizes of a model that is shown one gsd.

    Args:
        model: a `Member` or `LoadedModel`; whatever has no `gsd_m` is shown images as they are.
        tta: the views.
    """
    if getattr(model, "gsd_m", None) is not None and any(view.resizes for view in tta.views):
        raise InputError(
            f"{model.source}: images are brought to {model.gsd_m:g} m per pixel for this network, "
            "so views of several sizes mean nothing; use those of d4"
        )


class _Told:
    """Tells of every run once, also of those that are done a second time."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._most = self._now = 0

    def __call__(self) -> None:
        self._now += 1
        if self._now > self._most:
            self._most = self._now
            self._tell()

    def begin_anew(self) -> None:
        """All runs are done again."""
        self._now = 0


class PoseEnsemble(nn.Module):
    """Members averaged with test-time augmentation around each of them or around their mean.

    Args:
        members: at least one, each (RGB image N x 3 x H x W, gsd_m N x 1) -> Prediction.
        tta: the views.
        tta_mode: "model" (views of a model, then models) or "ensemble" (models of a view, then
            views). Directions are normalised before either mean.
        device: where members compute; they may wait on the host.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        tta: Tta,
        tta_mode: str = TTA_PER_MODEL,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not members:
            raise InputError("ensemble.models is empty: name at least one checkpoint")
        check_tta_mode(tta_mode)
        for member in members:
            check_views(member, tta)
        self.members = nn.ModuleList(members)
        self.tta = tta
        self.tta_mode = tta_mode
        self._offload = WeightOffload(self.members, device or torch.device("cpu"))
        self._batches = [ViewBatches(member, self._offload) for member in members]

    @property
    def runs(self) -> int:
        """How often a network runs for an image."""
        return len(self.members) * len(self.tta.views)

    def unknown_gsd(self, gsd_m: float, size: Sequence[int]) -> list[UnknownGsd]:
        """Which networks are shown what they do not know, see `unknown_gsd`."""
        return unknown_gsd(self.members, self.tta, gsd_m, size)

    def forward(
        self,
        image: Tensor,
        gsd_m: Tensor,
        on_run: Callable[[], None] = do_nothing,
        spread: HeightSpread | None = None,
    ) -> Prediction:
        """Averaged prediction.

        Args:
            image: as for a member.
            gsd_m: as for a member.
            on_run: called after each of `runs`, on a GPU when it has been started.
            spread: is shown every view of every model.
        """
        told = _Told(on_run)
        while True:
            try:
                return self._average(image, gsd_m, told, spread)
            except Exception as error:
                if not is_out_of_memory(error) or not self._offload.can_make_room():
                    raise
            # Views brought back or means did not fit; networks alone are looked after elsewhere.
            self._offload.make_room()
            told.begin_anew()
            if spread is not None:
                spread.begin_anew()

    def _average(
        self,
        image: Tensor,
        gsd_m: Tensor,
        on_run: Callable[[], None],
        spread: HeightSpread | None,
    ) -> Prediction:
        looks = [view.look(image, gsd_m) for view in self.tta.views]

        def back(view: int, prediction: Prediction) -> Prediction:
            found = self.tta.views[view].bring_back(prediction, image.shape[-2:])
            if spread is not None:
                spread.add(found.agl_m)
            on_run()
            return found

        if self.tta_mode == TTA_PER_MODEL:
            return self._views_then_members(looks, back)
        return self._members_then_views(looks, back)

    def _views_then_members(
        self, looks: list[Look], back: Callable[[int, Prediction], Prediction]
    ) -> Prediction:
        mean = PredictionMean()
        for batches in self._batches:
            own = PredictionMean(self.tta.geometric_agl)
            for view, prediction in batches.predict(looks):
                own.add(back(view, prediction))
            mean.add(own.result())
        return mean.result()

    def _members_then_views(
        self, looks: list[Look], back: Callable[[int, Prediction], Prediction]
    ) -> Prediction:
        of_views = [PredictionMean() for _ in looks]
        for batches in self._batches:
            for view, prediction in batches.predict(looks):
                of_views[view].add(back(view, prediction))
        mean = PredictionMean(self.tta.geometric_agl)
        for of_view in of_views:
            mean.add(of_view.result())
        return mean.result()
