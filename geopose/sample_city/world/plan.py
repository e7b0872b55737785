"""The street plan of a scene.

In: `SceneParameters` and the image's extent in metres. Out: a finished `World`: a turned street
grid over the image and a margin as wide as the longest shadow or lean, every block filled.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from geopose.sample_city.world.cities import SceneParameters
from geopose.sample_city.world.land_use import fill_block
from geopose.sample_city.world.landmarks import bridge
from geopose.sample_city.world.mesh import Point
from geopose.sample_city.world.site import MARKING, Rect, Site, World

Span = tuple[float, float]
_TREE_REACH_M = 22.0  # height of the tallest tree


def build_world(scene: SceneParameters, extent_m: tuple[float, float]) -> World:
    """Lays out and builds the world of one scene.

    Args:
        scene: camera, sun, style and random stream.
        extent_m: (width, height) of the image on the ground.

    Returns:
        World whose ground origin is the centre of the image's first pixel.
    """
    style, rng = scene.style, scene.rng
    reach = math.tan(scene.off_nadir_rad) + 1.0 / math.tan(scene.sun_elevation_rad)
    low = _TREE_REACH_M * reach
    world = World(style, rng, (-low, -low, extent_m[0] + low, extent_m[1] + low))
    turn = float(rng.uniform(-math.pi / 4, math.pi / 4))
    middle = (extent_m[0] / 2, extent_m[1] / 2)
    half = math.hypot(*middle) + style.tower_m[1] * reach
    plan = Site(world, middle, turn, (-half, -half, half, half))
    plan.fill(plan.rect, plan.vary(style.asphalt, 6.0))
    columns = _streets(rng, half, style.block_m, style.street_m)
    shared = _streets(rng, half, style.depth_m, style.street_m)
    staggered = rng.random() < 0.5
    grid = [
        (column, _streets(rng, half, style.depth_m, style.street_m) if staggered else shared)
        for column in columns
    ]
    centre = rng.uniform(-0.3, 0.3, 2) * math.hypot(*extent_m)
    spread = 0.35 * math.hypot(*extent_m) + 60.0
    reach_m = style.tower_m[1] * reach
    for (s0, s1), rows in grid:
        for t0, t1 in rows:
            rect = (s0, t0, s1, t1)
            if not _near_image(plan, rect, extent_m, reach_m):
                continue
            away = math.hypot((s0 + s1) / 2 - centre[0], (t0 + t1) / 2 - centre[1])
            site = Site(world, middle, turn, rect, math.exp(-((away / spread) ** 2)))
            fill_block(site)
    for rect, along_s, crossing in _street_pieces(grid, half, staggered):
        if _near_image(plan, rect, extent_m, low):
            _street(plan, rect, along_s, crossing)
    if style.viaduct > 0.0 and rng.random() < style.viaduct:
        _viaduct(plan, columns, half)
    return world


def _viaduct(plan: Site, columns: list[Span], half: float) -> None:
    """A road on piers over the street nearest to the middle, from end to end."""
    rng = plan.rng
    gaps = [(end, start) for (_, end), (start, _) in itertools.pairwise(columns)]
    if not gaps:
        return
    low, high = min(gaps, key=lambda gap: abs(gap[0] + gap[1]))
    middle, wide = (low + high) / 2, min(0.8 * (high - low), float(rng.uniform(8.0, 16.0)))
    bridge(plan, (middle, -half), (middle, half), wide, float(rng.uniform(5.5, 10.0)), 0.0)


def _street_pieces(
    grid: list[tuple[Span, list[Span]]], half: float, staggered: bool
) -> Iterator[tuple[Rect, bool, bool]]:
    """(rectangle, runs along s, ends at a crossing) of every piece of street."""
    for (s0, s1), rows in grid:
        for (_, t0), (t1, _) in itertools.pairwise(rows):
            yield (s0, t0, s1, t1), True, True
    for ((_, s0), rows), ((s1, _), _) in itertools.pairwise(grid):
        pieces = [(-half, half)] if staggered else rows
        for t0, t1 in pieces:
            yield (s0, t0, s1, t1), False, not staggered


def _streets(rng: np.random.Generator, half: float, block_m: Span, street_m: Span) -> list[Span]:
    """Extents of the blocks along one axis; the gaps between them are streets."""
    blocks = []
    position = -half - float(rng.uniform(0, block_m[1]))
    while position < half:
        length = float(rng.uniform(*block_m))
        blocks.append((position, position + length))
        position += length + float(rng.uniform(*street_m))
    return blocks


def _near_image(plan: Site, rect: Rect, extent_m: Span, reach: float) -> bool:
    """Whether anything on the block can be seen in, or shade, the image."""
    x, y = np.array(plan.ring(rect)).T
    return bool(
        x.max() > -reach
        and y.max() > -reach
        and x.min() < extent_m[0] + reach
        and y.min() < extent_m[1] + reach
    )


def _street(plan: Site, rect: Rect, along_s: bool, crossing: bool) -> None:
    """Lane marks, zebra crossings, parked and driving cars on one piece of street."""
    rng = plan.rng
    s0, t0, s1, t1 = rect
    start, end, low, high = (t0, t1, s0, s1) if along_s else (s0, s1, t0, t1)
    centre, width = (start + end) / 2, end - start

    def place(across: float, along: float) -> Point:
        return (along, across) if along_s else (across, along)

    if crossing:
        if rng.random() < 0.6:
            for across in np.arange(start + 0.6, end - 0.3, 1.1):
                for at in (low - 0.5, high - 2.5):
                    plan.line(place(across, at), place(across, at + 3.0), MARKING, 0.5)
        low, high = low + 4.0, high - 4.0
    if rng.random() < 0.4:
        plan.line(place(centre, low), place(centre, high), (188.0, 164.0, 96.0), 0.28)
    else:
        for at in np.arange(low, high, 10.0):
            plan.line(place(centre, at), place(centre, at + 3.5), MARKING, 0.18)
    if width > 17.0:
        for across in (start + 0.27 * width, end - 0.27 * width):
            for at in np.arange(low, high, 10.0):
                plan.line(place(across, at), place(across, at + 3.0), MARKING, 0.15)
    turn = 0.0 if along_s else math.pi / 2
    for side in (-1, 1):
        busy = rng.uniform(0.05, 0.4)
        for at in np.arange(low + 5.0, high - 5.0, 6.2):
            if rng.random() < busy:
                lane = centre + side * (width / 2 - 1.3)
                plan.car(*place(lane, at + rng.uniform(-0.4, 0.4)), turn)
            elif rng.random() < 0.07:
                plan.car(*place(centre + side * width * 0.16, at), turn)
