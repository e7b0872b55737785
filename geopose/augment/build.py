"""Builds the augmentation of a level that a config names.

In: level, crop size, downsample factor. Out: an `Augmentation`, which takes an image with heights,
gsd, scale and angle and returns a crop of it with all five changed together.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

import albumentations as A
import numpy as np

from geopose.augment.height_warp import HeightWarpRange
from geopose.augment.levels import LEVELS, Level
from geopose.augment.spatial import Pixels, Sample, Scene, apply_map, draw_map
from geopose.errors import InputError
from geopose.schema.numbers import is_whole


class Augmentation:
    """A random crop and change of one image, reproducible from a seed.

    Args:
        level: what may be drawn.
        crop_size: side of the square crop in pixels; None = the whole image.
        downsample: shrink the image by this factor before cropping.
        height_warp: what is drawn of other heights; None = they stay.
    """

    def __init__(
        self,
        level: Level,
        crop_size: int | None,
        downsample: int,
        height_warp: HeightWarpRange | None = None,
    ) -> None:
        self._spatial = level.spatial
        self._crop_size = crop_size
        self._downsample = downsample
        self._height_warp = height_warp
        transforms = level.colours()
        self._colours = A.Compose(transforms) if transforms else None
        self.set_seed(0)

    def set_seed(self, seed: int) -> None:
        """Makes the next calls follow from this number (0 to 2**32 - 1)."""
        self._rng = np.random.default_rng(seed)
        if self._colours is not None:
            # Not its set_random_seed: that starts every transform at the same number, so that they
            # all act or all rest together. Here they draw from one stream, one after the other.
            self._colours.set_random_state(np.random.default_rng([seed, 1]), Random(seed))

    def __call__(
        self,
        image: Pixels,
        agl_m: Pixels,
        gsd_m: float,
        scale_px_per_m: float,
        angle_rad: float,
    ) -> Sample:
        """Crops and changes one image.

        Args:
            image: H x W x 3 uint8 RGB, of any size; smaller than the crop is padded. This and the
                heights may be files of which only the part that is needed is read.
            agl_m: H x W heights in metres, NaN = unknown.
            gsd_m: metres per pixel.
            scale_px_per_m: flow of one metre of height.
            angle_rad: flow direction.

        Returns:
            The same five after the change; the flow of a pixel is still AGL * scale.
        """
        scene = Scene(image, agl_m, gsd_m, scale_px_per_m, angle_rad)
        pixel_map = draw_map(self._spatial, self._rng)
        # Drawn last, so that samples without it are what they are where there is none.
        factor = 1.0 if self._height_warp is None else self._height_warp.draw(self._rng)
        sample = apply_map(scene, pixel_map, self._crop_size, self._downsample, factor)
        if self._colours is None:
            return sample
        return sample._replace(image=self._colours(image=sample.image)["image"])


def build_augmentation(
    level: str,
    crop_size: int | None = None,
    downsample: int = 1,
    height_warp: Mapping[str, Any] | None = None,
) -> Augmentation:
    """The augmentation of a level.

    Args:
        level: one of LEVELS. Every level crops; none changes nothing else.
        crop_size: side of the square crop in pixels of the (shrunk) image; None = no cropping.
        downsample: whole number by which images are shrunk first.
        height_warp: `probability` and `factor` (least, largest) of `HeightWarpRange`; None = off.

    Raises:
        InputError: unknown level, a size or factor that is not a positive whole number, or
            something else in `height_warp`.
    """
    if level not in LEVELS:
        raise InputError(f"augmentation level is {level!r}, expected {', '.join(LEVELS)}")
    for name, value in (("crop_size", crop_size), ("downsample", downsample)):
        if value is not None and not is_whole(value, 1):
            raise InputError(f"{name} is {value!r}, expected a whole number from 1")
    if downsample is None:
        raise InputError("downsample is None, expected a whole number from 1")
    warp = None if height_warp is None else HeightWarpRange.of(height_warp)
    return Augmentation(LEVELS[level], crop_size, downsample, warp)
