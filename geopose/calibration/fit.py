"""What two gains do to the official score, and which are best: sums over pixels in, numbers out.

With heights g h and flow m f in place of h and f, every R2 is a parabola in g or m: a few sums over
pixels say the score for all of them. Gains go through zero, so ground stays ground.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopose.checkpoints.formats.facts import NO_GAINS, Gains
from geopose.geometry import angle_difference

_LEAST, _LARGEST = 0.1, 10.0


class _Sums:
    """Of predicted p and true t: how many, and the sums of t, t t, p t and p p; or of several."""

    def __init__(self, values: Iterable[float] = (0.0,) * 5) -> None:
        self.values = np.array(list(values), np.float64)

    @property
    def variation(self) -> float:
        """Sum of squared deviations of the truth."""
        count, total, squares = self.values[:3]
        return float(squares - total**2 / count) if count else 0.0

    def r2(self, gain: float) -> float:
        """Of gain p."""
        _, _, squares, product, predicted = self.values
        return 1.0 - (squares - 2 * gain * product + gain**2 * predicted) / self.variation


@dataclass(frozen=True)
class ImageSums:
    """One image: its city, the sums of heights (metres) and of both components of its flow
    (pixels), and how far its direction is off (radians)."""

    city: str
    agl: NDArray[np.float64]
    flow: NDArray[np.float64]
    off_rad: float

    @staticmethod
    def of(
        city: str,
        predicted: tuple[NDArray[np.floating], float, float],
        true: tuple[NDArray[np.floating], float, float],
    ) -> "ImageSums":
        """Of H x W heights in metres (true ones NaN where unknown), scale (px/m), angle (rad)."""
        known = ~np.isnan(true[0])
        heights, truth = predicted[0][known].astype(np.float64), true[0][known].astype(np.float64)
        agl = [truth.size, truth.sum(), truth @ truth, heights @ truth, heights @ heights]
        x, y = true[1] * math.sin(true[2]), true[1] * math.cos(true[2])
        along = predicted[1] * true[1] * math.cos(predicted[2] - true[2])
        factors = [2.0, x + y, true[1] ** 2, along, predicted[1] ** 2]
        off_rad = float(angle_difference(predicted[2], true[2]))
        return ImageSums(city, np.array(agl), np.array(agl) * factors, off_rad)


def _cities(images: Iterable[ImageSums]) -> dict[str, tuple[_Sums, _Sums]]:
    """Pooled by city; those whose truth does not vary have no score and are left out."""
    pooled: dict[str, tuple[_Sums, _Sums]] = {}
    for image in images:
        both = pooled.setdefault(image.city, (_Sums(), _Sums()))
        both[0].values += image.agl
        both[1].values += image.flow
    return {
        name: both
        for name, both in pooled.items()
        if all(sums.variation > 1e-12 * sums.values[2] for sums in both)
    }


def score_with(images: Iterable[ImageSums], gains: Gains = NO_GAINS) -> float:
    """The official score of images with gains; NaN where no city's truth varies.

    Heights are not rounded to centimetres here, which changes the score by less than 1e-6.
    """
    cities = _cities(images).values()
    both = [(agl.r2(gains.agl) + flow.r2(gains.magnitude)) / 2 for agl, flow in cities]
    return float(np.mean(both)) if both else math.nan


def best_gains(images: Iterable[ImageSums]) -> Gains:
    """The gains with the highest official score: least squares, every city by its variation.

    A gain that nothing decides is 1.
    """
    cities = list(_cities(images).values())
    return Gains(*(_best([both[which] for both in cities]) for which in (0, 1)))


def _best(cities: list[_Sums]) -> float:
    product = sum(sums.values[3] / sums.variation for sums in cities)
    predicted = sum(sums.values[4] / sums.variation for sums in cities)
    gain = product / predicted if predicted > 0 else 1.0
    return float(np.clip(gain, _LEAST, _LARGEST))


@dataclass(frozen=True)
class Fit:
    """Gains, and the score before and after.

    Attributes:
        gains: fitted on all images.
        before, after: score of all images, without and with them.
        halves: the same measured on each half with gains fitted on the other, mean of both; NaN if
            there are too few images for that.
    """

    gains: Gains
    before: float
    after: float
    halves: tuple[float, float]

    @property
    def helps(self) -> bool:
        """On images that the gains were not fitted on."""
        return self.halves[1] > self.halves[0]

    def summary(self) -> Mapping[str, float]:
        """For a file, rounded."""
        values = (self.before, self.after, *self.halves)
        names = ("before", "after", "halves_before", "halves_after")
        return {n: round(v, 5) for n, v in zip(names, values, strict=True) if math.isfinite(v)}


def fit(images: list[ImageSums]) -> Fit:
    """Fits gains on all images, and on each half of them to see what they do for the other."""
    seen: dict[str, int] = {}
    halves: tuple[list[ImageSums], list[ImageSums]] = ([], [])
    for image in images:
        turn = seen[image.city] = seen.get(image.city, 0) + 1
        halves[turn % 2].append(image)
    scores = [
        (score_with(shown), score_with(shown, best_gains(others)))
        for shown, others in (halves, halves[::-1])
    ]
    before, after = (float(np.mean(values)) for values in zip(*scores, strict=True))
    gains = best_gains(images)
    return Fit(gains, score_with(images), score_with(images, gains), (before, after))
