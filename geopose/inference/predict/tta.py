"""Test-time augmentation: an image batch and a predictor in, the mean prediction of its views out.

A view moves the image by a symmetry of the square or zooms it; its prediction is moved back before
averaging. Maps are moved by the inverse symmetry, scale does not change under symmetries, and the
direction is a unit vector moved as any image vector and averaged as a vector, never as an angle.
Predictions are summed as they come, so of the views only the images are all in memory at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from geopose import keys
from geopose.errors import InputError
from geopose.geometry import SYMMETRIES, SYMMETRY, Symmetry, vector_to_angle
from geopose.words import TTA_NAMES

GMEAN = "-gmean"
ZOOM_STEP_PX = 256  # `ms`: the longer side becomes this much shorter and longer
SMALLEST_ZOOM = 0.5  # an image shorter than twice the step is halved at most


_SHORTEST = 1e-12  # shorter vectors are not normalised any more


class Prediction(NamedTuple):
    """What a model, its views or an ensemble say about a batch of N images.

    Attributes:
        agl_m: height above ground, N x 1 x H x W.
        magnitude_px: flow length as predicted per pixel, N x 1 x H x W.
        scale_px_per_m: N x 1.
        direction: (sin a, cos a) times any positive length, N x 2.
    """

    agl_m: Tensor
    magnitude_px: Tensor
    scale_px_per_m: Tensor
    direction: Tensor

    @staticmethod
    def from_output(output: Mapping[str, Tensor]) -> "Prediction":
        """From a network's output fields, in float32."""
        return Prediction(
            output[keys.OUTPUT_AGL_MASK],
            output[keys.OUTPUT_MAGNITUDE_MASK],
            output[keys.OUTPUT_VFLOW_SCALE],
            output[keys.OUTPUT_VFLOW_DIRECTION],
        ).map(Tensor.float)

    @staticmethod
    def cat(predictions: Sequence["Prediction"]) -> "Prediction":
        """One prediction for the images of all of these."""
        if len(predictions) == 1:
            return predictions[0]
        return Prediction(*map(torch.cat, zip(*predictions, strict=True)))

    def split(self) -> list["Prediction"]:
        """One prediction for each image."""
        return [Prediction(*parts) for parts in zip(*(x.split(1) for x in self), strict=True)]

    def resized(self, size: Sequence[int], zoom: float) -> "Prediction":
        """The prediction of a zoomed image for one of `size` (height, width) before the zoom."""
        return self._replace(
            agl_m=_resize(self.agl_m, size),
            magnitude_px=_resize(self.magnitude_px, size) / zoom,
            scale_px_per_m=self.scale_px_per_m / zoom,
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prediction":
        """The prediction whose fields are all changed alike."""
        return Prediction(*(change(x) for x in self))

    @property
    def angle_rad(self) -> Tensor:
        """Flow direction in [0, 2 pi), N x 1; NaN where there is none, which no file holds."""
        return vector_to_angle(real_directions(self.direction)).unsqueeze(-1)


def real_directions(direction: Tensor) -> Tensor:
    """Directions as they are, N x 2; a vector without one becomes NaN, so that its image fails.

    A zero would count for nothing in a mean, and be north in the end.
    """
    largest = direction.abs().amax(dim=-1, keepdim=True)
    return torch.where((largest > _SHORTEST) & largest.isfinite(), direction, torch.nan)


# (image N x 3 x H x W, gsd_m N x 1) -> prediction of the same size
Predictor = Callable[[Tensor, Tensor], Prediction]


class PredictionMean:
    """Running mean: heights, magnitudes and scales as they are, directions as unit vectors.

    With `geometric_agl` heights are averaged by their logarithm (one view that sees ground, height
    0, makes it ground); everything else stays arithmetic.
    """

    def __init__(self, geometric_agl: bool = False) -> None:
        self._geometric = geometric_agl
        self._sum: Prediction | None = None
        self._count = 0

    def add(self, prediction: Prediction) -> None:
        """Adds one prediction; its direction counts with length 1."""
        part = prediction._replace(direction=F.normalize(prediction.direction, dim=-1))
        if self._geometric:
            part = part._replace(agl_m=torch.log(part.agl_m))
        self._count += 1
        if self._sum is None:
            # Copies: a model may return a view of memory that it uses again.
            self._sum = part.map(torch.clone)
            return
        for total, values in zip(self._sum, part, strict=True):
            total.add_(values)

    def result(self) -> Prediction:
        """The mean; its direction is the mean vector, not normalised."""
        if self._sum is None:
            raise ValueError("mean of no predictions")
        mean = self._sum.map(lambda total: total / self._count)
        return mean._replace(agl_m=torch.exp(mean.agl_m)) if self._geometric else mean


class HeightSpread:
    """Running standard deviation of heights over views and models (Welford's recurrence)."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """All predictions are made again."""
        self._count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, agl_m: Tensor) -> None:
        """Adds one view of one model, N x 1 x H x W."""
        self._count += 1
        if self._mean is None or self._squares is None:
            self._mean, self._squares = agl_m.clone(), torch.zeros_like(agl_m)
            return
        before = agl_m - self._mean
        self._mean.add_(before, alpha=1.0 / self._count)
        self._squares.addcmul_(before, agl_m - self._mean)

    def result(self) -> Tensor | None:
        """Metres, N x 1 x H x W; None of fewer than two predictions: they cannot differ."""
        if self._squares is None or self._count < 2:
            return None
        return (self._squares / self._count).sqrt()


@dataclass(frozen=True)
class Look:
    """What one view shows a model: the moved image (any type, N x 3 x h x w) and its gsd, N x 1."""

    image: Tensor
    gsd_m: Tensor


@dataclass(frozen=True)
class View:
    """One way of looking at the image: a symmetry, and another size.

    Attributes:
        symmetry: of the square.
        step_px: by which the longer side becomes longer.
    """

    symmetry: Symmetry = SYMMETRY["identity"]
    step_px: int = 0

    @property
    def resizes(self) -> bool:
        """Whether the model sees another size than the image's."""
        return bool(self.step_px)

    def look(self, image: Tensor, gsd_m: Tensor) -> Look:
        """The image and gsd of this view: zooming by s makes gsd / s of gsd."""
        if self.resizes:
            size, zoom = self._zoomed(image.shape[-2:])
            image, gsd_m = _resize(image.float(), size), gsd_m / zoom
        return Look(self.symmetry.apply_torch(image).contiguous(), gsd_m)

    def bring_back(self, prediction: Prediction, size: torch.Size) -> Prediction:
        """A prediction for `look`'s image, moved back to the image of `size` (H, W) as given."""
        back = self.symmetry.inverse
        found = prediction._replace(
            agl_m=back.apply_torch(prediction.agl_m),
            magnitude_px=back.apply_torch(prediction.magnitude_px),
            direction=back.map_vectors(F.normalize(prediction.direction, dim=-1)),
        )
        if not self.resizes:
            return found
        _, zoom = self._zoomed(size)
        return found.resized(size, zoom)

    def gsd_m(self, gsd_m: float, size: Sequence[int]) -> float:
        """Metres per pixel at which this view shows an image of `size` (H, W)."""
        return gsd_m / self._zoomed(size)[1] if self.resizes else gsd_m

    def predict(self, predictor: Predictor, image: Tensor, gsd_m: Tensor) -> Prediction:
        """Prediction of this view, moved back to the image as given."""
        look = self.look(image, gsd_m)
        return self.bring_back(predictor(look.image, look.gsd_m), image.shape[-2:])

    def _zoomed(self, size: Sequence[int]) -> tuple[tuple[int, int], float]:
        """(height, width) of the zoomed image, and the zoom that whole pixels make of it."""
        height, width = size
        longer = max(height, width)
        wanted = max(SMALLEST_ZOOM, (longer + self.step_px) / longer)
        rows, columns = max(1, round(height * wanted)), max(1, round(width * wanted))
        return (rows, columns), (rows * columns / (height * width)) ** 0.5


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with pixel areas aligned, both ways, so that resizing and back does not shift."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _views(names: tuple[str, ...]) -> tuple[View, ...]:
    return tuple(View(SYMMETRY[name]) for name in names)


_MS = (0, -ZOOM_STEP_PX, ZOOM_STEP_PX)
_VIEWS: dict[str | None, tuple[View, ...]] = {  # of every one of TTA_NAMES
    None: (View(),),
    "fliplr": _views(("identity", "fliplr")),
    "flips": _views(("identity", "fliplr", "flipud")),
    "d2": _views(("identity", "fliplr", "flipud", "rot180")),
    "d4": tuple(View(symmetry) for symmetry in SYMMETRIES),
    "ms": tuple(View(step_px=step) for step in _MS),
    "d4-ms": tuple(View(symmetry, step) for step in _MS for symmetry in SYMMETRIES),
}


@dataclass(frozen=True)
class Tta:
    """The mean over the views of one mode.

    Attributes:
        views: what is averaged.
        geometric_agl: heights by geometric instead of arithmetic mean.
    """

    views: tuple[View, ...]
    geometric_agl: bool = False

    @staticmethod
    def from_name(name: str | None) -> "Tta":
        """The mode of an inference config, such as None, "d4" or "d4-gmean".

        Raises:
            InputError: unknown name.
        """
        base = name.removesuffix(GMEAN) if isinstance(name, str) else name
        geometric = base != name
        if not isinstance(base, str | None) or base not in _VIEWS or (geometric and base is None):
            known = ", ".join("null" if mode is None else mode for mode in TTA_NAMES)
            raise InputError(
                f"ensemble.tta: unknown mode {name!r}, use one of {known} "
                f"(with {GMEAN} added: geometric mean of heights)"
            )
        return Tta(_VIEWS[base], geometric)

    def __call__(self, predictor: Predictor, image: Tensor, gsd_m: Tensor) -> Prediction:
        """Mean prediction for a batch.

        Args:
            predictor: answers for one view at a time.
            image: N x 3 x H x W, any size and type that the predictor takes.
            gsd_m: N x 1, metres per pixel.
        """
        mean = PredictionMean(self.geometric_agl)
        for view in self.views:
            mean.add(view.predict(predictor, image, gsd_m))
        return mean.result()
