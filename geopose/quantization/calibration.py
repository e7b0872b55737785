"""The images that the ranges of a network's maps are taken from: a split in, network inputs out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopose.data.layout import ImageRecord
from geopose.data.rgb import read_rgb
from geopose.geometry import SYMMETRIES
from geopose.inference.predict.ensemble import Member
from geopose.models.exportable import INPUTS


def shuffled(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The same images in an order that always is the same, every city in turn."""
    order = np.random.default_rng(0).permutation(len(records))
    cities: dict[str, list[ImageRecord]] = {}
    for number in order:
        cities.setdefault(records[number].city, []).append(records[number])
    turns = chain.from_iterable(zip_longest(*(cities[name] for name in sorted(cities))))
    return [record for record in turns if record is not None]


@dataclass(frozen=True)
class Calibration:
    """Images as a network is shown them, one after the other in the eight symmetries of the square.

    Attributes:
        records: the images.
        member: whose network that is.
        side: of larger images a part of this many pixels as given, at a place of its own.
    """

    records: Sequence[ImageRecord]
    member: Member
    side: int

    def inputs(self, number: int) -> dict[str, NDArray[np.float32]]:
        """What the network takes of an image: `image` 1 x 3 x H x W, normalised, and `gsd` 1 x 1.

        Raises:
            InputError: the file cannot be read.
        """
        record = self.records[number]
        rgb = self._part(read_rgb(record.rgb_file()), number)
        turned = SYMMETRIES[number % len(SYMMETRIES)].apply_torch(rgb).contiguous()
        look = self.member.at_common_gsd(turned, torch.tensor([[record.gsd_m]]))
        shown: tuple[Tensor, Tensor] = self.member.shown(look.image, look.gsd_m)
        return {name: x.numpy() for name, x in zip(INPUTS, shown, strict=True)}

    def _part(self, rgb: NDArray[np.uint8], number: int) -> Tensor:
        """1 x 3 x h x w of an H x W x 3 image."""
        generator = np.random.default_rng([0, number])
        starts = [int(generator.integers(max(0, n - self.side) + 1)) for n in rgb.shape[:2]]
        rows, columns = (slice(start, start + self.side) for start in starts)
        return torch.from_numpy(np.ascontiguousarray(rgb[rows, columns])).permute(2, 0, 1)[None]

    def describe(self) -> dict[str, Any]:
        """How many images, of which size at most, and a hash of everything that is shown."""
        digest = hashlib.sha256()
        for number in range(len(self.records)):
            for values in self.inputs(number).values():
                digest.update(str(values.shape).encode())
                digest.update(values.tobytes())
        return {"images": len(self.records), "side": self.side, "sha256": digest.hexdigest()}
