"""The levels of augmentation and their steps: what is drawn for a training sample, and how often.

A level is a spatial range and colour steps. Each level adds to the one before. Colour, light and
noise change uint8 RGB crops and move nothing: nothing here may shift what is seen, because the
heights stay where they are; blurs are symmetric and shrinking keeps pixel centres.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.augment.spatial import SpatialRange

_HAZE_COLOUR = (225, 230, 235)
_STEPS = 64  # of a grey value, in which noise is computed with 16-bit integers
_SHARES = (np.arange(256) + 0.5) / 256
# What a standard normal variable falls below in each of 256 equal shares of its draws.
_NORMAL = np.array([NormalDist().inv_cdf(share) for share in _SHARES])


class Haze(A.ImageOnlyTransform):
    """Fog of uneven thickness between the ground and a high camera.

    albumentations' RandomFog draws thousands of discs as a car's camera would see them and takes
    0.7 s for a crop of 768 px; this blends in a smooth field, in a few milliseconds.

    Args:
        density: range of the mean share of light that the haze scatters; it varies by half of that.
        p: probability.
    """

    def __init__(self, density: tuple[float, float] = (0.1, 0.4), p: float = 0.5) -> None:
        super().__init__(p=p)
        self.density = density

    def get_params(self) -> dict[str, Any]:
        """Draws a coarse field of thickness, enlarged to whatever size the image has."""
        mean = self.random_generator.uniform(*self.density)
        return {"field": mean * self.random_generator.uniform(0.5, 1.5, (4, 4))}

    def apply(
        self, img: NDArray[np.uint8], field: NDArray[np.float64], **params: Any
    ) -> NDArray[np.uint8]:
        """Blends the haze's colour in; H x W x 3 uint8 RGB."""
        size = (img.shape[1], img.shape[0])
        share = cv2.resize(field.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        haze = np.full_like(img, _HAZE_COLOUR)
        return np.asarray(cv2.blendLinear(img, haze, 1 - np.asarray(share), share), dtype=np.uint8)


class SensorNoise(A.ImageOnlyTransform):
    """Noise of a camera's electronics and of the light itself, independent in every pixel.

    The deviation in grey values is that of the electronics at black and grows with the root of the
    brightness to that of the light at white. The normal distribution is drawn in 256 steps, from
    one random byte a value: albumentations' ISONoise takes ten times as long for a crop of 768 px.

    Args:
        electronic: range of the deviation at every brightness.
        light: range of the further deviation at white; both add as squares.
        p: probability.
    """

    def __init__(
        self,
        electronic: tuple[float, float] = (0.0, 10.0),
        light: tuple[float, float] = (0.0, 10.0),
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.electronic = electronic
        self.light = light

    def get_params(self) -> dict[str, Any]:
        """Draws both deviations, and a seed for the noise."""
        draw = self.random_generator
        return {
            "electronic": draw.uniform(*self.electronic),
            "light": draw.uniform(*self.light),
            "seed": int(draw.integers(2**32)),
        }

    def apply(
        self, img: NDArray[np.uint8], electronic: float, light: float, seed: int, **params: Any
    ) -> NDArray[np.uint8]:
        """Adds the noise; H x W x 3 uint8 RGB."""
        draws = np.frombuffer(np.random.default_rng(seed).bytes(img.size), np.uint8)
        normal = np.rint(_NORMAL * _STEPS).astype(np.int16)
        noise = cv2.LUT(draws.reshape(img.shape), normal)
        brightness = np.arange(256) / 255
        deviation = np.sqrt(electronic**2 + light**2 * brightness)
        deviation = cv2.LUT(img, np.rint(deviation * _STEPS).astype(np.int16))
        noise = cv2.multiply(noise, deviation, scale=1 / _STEPS**2)
        return np.asarray(cv2.add(img, noise, dtype=cv2.CV_8U), dtype=np.uint8)


class LostResolution(A.ImageOnlyTransform):
    """Shrinks and enlarges again, as a coarser sensor would see.

    albumentations' Downscale moves the picture by up to 0.6 px, because it scales by the factor
    asked for and not by the ratio of the rounded sizes.

    Args:
        factor: range of the intermediate size, as a share of the image.
        p: probability.
    """

    def __init__(self, factor: tuple[float, float] = (0.5, 0.9), p: float = 0.5) -> None:
        super().__init__(p=p)
        self.factor = factor

    def get_params(self) -> dict[str, Any]:
        """Draws the factor."""
        return {"factor": self.random_generator.uniform(*self.factor)}

    def apply(self, img: NDArray[np.uint8], factor: float, **params: Any) -> NDArray[np.uint8]:
        """Resizes twice between exact sizes; H x W x 3 uint8 RGB."""
        height, width = img.shape[:2]
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        small = cv2.resize(img, size, interpolation=cv2.INTER_AREA)
        large = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(large, dtype=np.uint8)


def safe() -> list[A.BasicTransform]:
    """Gamma, tone curve, brightness and contrast."""
    return [
        A.RandomGamma((80, 120), p=0.3),
        A.RandomToneCurve(scale=0.1, p=0.3),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    ]


def light() -> list[A.BasicTransform]:
    """Adds local contrast, sensor noise and small colour shifts."""
    return [
        *safe(),
        A.CLAHE(clip_limit=(1, 3), p=0.15),
        A.OneOf(
            [
                A.RGBShift(10, 10, 10),
                A.HueSaturationValue(5, 15, 10),
            ],
            p=0.3,
        ),
        A.OneOf(
            [
                SensorNoise(electronic=(2.5, 10), light=(0, 0)),
                SensorNoise(electronic=(0, 2.5), light=(4, 15)),
            ],
            p=0.2,
        ),
    ]


def medium() -> list[A.BasicTransform]:
    """Adds haze and holes of up to a tenth of the side; heights under holes are still asked for."""
    return [
        *light(),
        Haze(p=0.1),
        A.CoarseDropout(
            num_holes_range=(1, 6),
            hole_height_range=(0.02, 0.1),
            hole_width_range=(0.02, 0.1),
            fill=0,
            p=0.2,
        ),
    ]


def hard() -> list[A.BasicTransform]:
    """Adds strong colour changes, blur, JPEG artefacts and lost resolution."""
    return [
        *medium(),
        A.OneOf(
            [
                A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.5, 1.5), (-0.05, 0.05)),
                A.HueSaturationValue(15, 40, 30),
                A.RGBShift(30, 30, 30),
                A.ToGray(),
            ],
            p=0.4,
        ),
        A.OneOf(
            [
                A.GaussianBlur(blur_limit=(3, 5)),
                A.MotionBlur(blur_limit=(3, 7), allow_shifted=False, direction_range=(0, 0)),
            ],
            p=0.2,
        ),
        A.OneOf(
            [
                A.ImageCompression(quality_range=(50, 95)),
                LostResolution(),
            ],
            p=0.3,
        ),
    ]


@dataclass(frozen=True)
class Level:
    """Spatial range and colour changes of one level."""

    spatial: SpatialRange
    colours: Callable[[], list[A.BasicTransform]] = list


_D4 = SpatialRange(symmetries=True)
_LIGHT = SpatialRange(True, zoom=0.1, rotation_deg=22, sized_crop=0.9, probability=0.7)
_HARD = SpatialRange(True, zoom=0.3, rotation_deg=45, sized_crop=0.9, probability=0.8)

# What `train.augmentations` may say.
LEVELS: dict[str, Level] = {
    "none": Level(SpatialRange()),
    "d4_only": Level(_D4),
    "safe": Level(_D4, safe),
    "light": Level(_LIGHT, light),
    "medium": Level(_LIGHT, medium),
    "hard": Level(_HARD, hard),
}
