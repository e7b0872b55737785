"""Finds images of the same place by their heights: pairs that are alike, and what hangs together.

Every pair of images of a city is compared in two steps. Coarse grids first, in every direction,
because sensors need not have north up; then the pairs that could be one place, on finer grids and
in the directions near the best. Coarse grids of a city are in memory with their transforms, 0.1 MB
an image, and fine ones only of the pairs at work and a few before them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from geopose.data.image_size import image_size
from geopose.data.layout import ImageRecord
from geopose.data.places.grid import Grid, ground_grid
from geopose.data.places.match import Waves, agreement, best_match, room_for, waves_of

COARSE_CELLS = 32  # along the longest side of a city's images
FINER = 3  # fine cells to a coarse one
MAYBE = 0.5  # of coarse grids
_FINE_TURNS = (-8.0, -4.0, 0.0, 4.0, 8.0)  # degrees from the best coarse direction
_KEPT_GRIDS = 64  # fine grids in memory
_DOUBT_M2 = 2000.0  # on a hectare, a fifth more of it must be equal
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Rule:
    """What makes two images one place.

    Attributes:
        least: concordance of their fine grids, 0..1.
        equal: share of built cells that have the same height in both, where they share much ground.
        overlap: share of the smaller image's ground that both must show.
        turns: directions to try, evenly over the circle; 1 = all images have the same side up.
    """

    least: float = 0.7
    equal: float = 0.4
    overlap: float = 0.4
    turns: int = 24

    @property
    def degrees(self) -> list[float]:
        """The directions."""
        return [360.0 * number / self.turns for number in range(self.turns)]

    def equal_of(self, shared_m2: float) -> float:
        """`equal` for so much shared ground: of little, more must agree, for two roofs may."""
        return min(self.equal + _DOUBT_M2 / max(shared_m2, 1.0), 0.95)

    def near(self, degrees: float) -> list[float]:
        """Directions for the second step."""
        return [degrees + more for more in _FINE_TURNS] if self.turns > 1 else [degrees]


@dataclass(frozen=True)
class Link:
    """Two images of one place, and how alike they are."""

    one: str
    two: str
    likeness: float
    equal: float


def cell_m(records: Sequence[ImageRecord]) -> float:
    """Side of a coarse cell for a city: a share of its largest image, in metres."""
    sides = (max(image_size(r.rgb_file())) * r.gsd_m for r in records)
    return max(sides) / COARSE_CELLS


class _City:
    """The grids of a city's images."""

    def __init__(self, records: Sequence[ImageRecord], rule: Rule) -> None:
        self.records, self.rule = records, rule
        self.fine_m = cell_m(records) / FINER
        self.coarse: list[Grid] = []
        self.fine = lru_cache(maxsize=_KEPT_GRIDS)(self._fine)

    def read(self) -> Iterator[None]:
        """Makes the coarse grids; yields after each."""
        for number in range(len(self.records)):
            self.coarse.append(self.fine(number).coarser(FINER))
            yield

    def _fine(self, number: int) -> Grid:
        return ground_grid(self.records[number], self.fine_m)

    def links_of(self, number: int, waves: Sequence[Waves], side: int) -> list[Link]:
        """Links of an image with all later ones."""
        turned = [(d, waves_of(self.coarse[number].turned(d), side)) for d in self.rule.degrees]
        found = []
        for other in range(number + 1, len(self.records)):
            best, degrees = max(
                (best_match(own, waves[other], side, self.rule.overlap).likeness, d)
                for d, own in turned
            )
            if best < MAYBE:
                continue
            alike, equal, shared_m2 = self._closely(number, other, degrees)
            if alike >= self.rule.least and equal >= self.rule.equal_of(shared_m2):
                names = self.records[number].image_id, self.records[other].image_id
                found.append(Link(*names, alike, equal))
        return found

    def _closely(self, number: int, other: int, degrees: float) -> tuple[float, float, float]:
        """Likeness and equality of the fine grids of two images, and the ground they share."""
        two = self.fine(other)
        turned = [self.fine(number).turned(d) for d in self.rule.near(degrees)]
        side = room_for(turned[0].heights.shape[0], max(two.heights.shape))
        waves = waves_of(two, side)
        tried = [
            (best_match(waves_of(grid, side), waves, side, self.rule.overlap), grid)
            for grid in turned
        ]
        match, grid = max(tried, key=lambda pair: pair[0].likeness)
        shared_m2 = match.cells * self.fine_m**2
        return match.likeness, agreement(grid, two, match.shift), shared_m2

    def links(self, workers: int) -> Iterator[list[Link]]:
        """The links of one image after the other; transforms let threads run side by side."""
        longest = max(max(grid.heights.shape) for grid in self.coarse)
        diagonal = max(math.ceil(math.hypot(*grid.heights.shape)) for grid in self.coarse)
        side = room_for(diagonal, longest)
        waves = [waves_of(grid, side) for grid in self.coarse]
        with ThreadPoolExecutor(workers) as pool:
            work = [
                pool.submit(self.links_of, number, waves, side)
                for number in range(len(self.records))
            ]
            try:
                for done in work:
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)


def find_links(
    records: Sequence[ImageRecord], rule: Rule, progress: Progress, workers: int = 1
) -> list[Link]:
    """All pairs of images that show one place.

    Args:
        records: images with truth; only those of one city are compared.
        rule: what makes two images one place.
        progress: passes on what it is given, with its length and a title.
        workers: threads.

    Raises:
        InputError: a file cannot be read.
    """
    found: list[Link] = []
    for name in sorted({record.city for record in records}):
        city = _City([record for record in records if record.city == name], rule)
        count = len(city.records)
        for _ in progress(city.read(), count, f"{name}: heights"):
            pass
        for links in progress(city.links(workers), count, f"{name}: comparing"):
            found += links
    return found


def places_of(records: Sequence[ImageRecord], links: Sequence[Link]) -> dict[str, str]:
    """The place of every image, named like its first image: whatever links connect."""
    above = {record.image_id: record.image_id for record in records}

    def first(name: str) -> str:
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    order = {record.image_id: number for number, record in enumerate(records)}
    for link in links:
        one, two = sorted((first(link.one), first(link.two)), key=order.__getitem__)
        above[two] = one
    return {record.image_id: first(record.image_id) for record in records}
