"""Blocks of the preset `real` beyond those of the four cities: stadiums, yards, sites, bridges.

In: an empty `Site`. Out: the same with buildings, trees, cars and ground on it, as in `land_use`.
"""

import math

import numpy as np

from geopose.sample_city.world.buildings import shrink, slab
from geopose.sample_city.world.landmarks import (
    bridge,
    crane,
    gantry,
    parking_deck,
    podium,
    row_of_houses,
    shell,
    stadium,
)
from geopose.sample_city.world.mesh import Color, prism
from geopose.sample_city.world.site import Rect, Site

WATER: Color = (44.0, 66.0, 74.0)
CONTAINERS: tuple[Color, ...] = ((150, 62, 48), (52, 88, 130), (70, 110, 84), (190, 150, 70))


def _row_houses(site: Site, rect: Rect) -> None:
    """Terraces on both long sides, gardens with sheds between them."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(site.style.grass, 9.0))
    storeys, deep = int(rng.integers(2, 4)), float(rng.uniform(8.5, 11.5))
    row, front = t0 + 3.0, True
    while row + deep + 5.0 < t1:
        step = float(rng.uniform(28.0, 60.0))
        start = s0 + 2.0
        while start + 16.0 < s1:
            end = min(start + step, s1 - 2.0)
            row_of_houses(site, (start, row, end, row + deep), storeys)
            start = end + 4.0
        lane = row + deep + float(rng.uniform(10.0, 16.0))
        for s in np.arange(s0 + 3.0, s1 - 3.0, 6.5):
            if rng.random() < 0.4:
                ring = site.centred_ring(s, lane - 3.5, (2.4, 2.0), 0.0)
                prism(site.world.mesh, ring, 0.0, 2.2, site.vary((120.0, 104.0, 90.0), 20.0))
        if front:
            site.fill((s0, lane - 2.0, s1, lane + 3.0), site.vary(site.style.asphalt, 8.0))
            for s in np.arange(s0 + 4.0, s1 - 4.0, 5.6):
                if rng.random() < 0.5:
                    site.car(s, lane + 0.5, 0.0)
        row, front = lane + 5.0, not front
    site.trees(rect, 60.0, (3.0, 9.0))


def _stadium_block(site: Site, rect: Rect) -> None:
    """A stadium in its car park."""
    s0, t0, s1, t1 = rect
    cut = s0 + min(s1 - s0, 1.5 * (t1 - t0))
    stadium(site, shrink((s0, t0, cut, t1), 2.0))
    if s1 - cut > 14.0:
        site.parking((cut + 1.0, t0 + 1.0, s1 - 1.0, t1 - 1.0), 0.5)
    site.trees(rect, 30.0, (5.0, 10.0))


def _deck_block(site: Site, rect: Rect) -> None:
    """A parking deck beside an office block."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(site.style.pavement, 8.0))
    cut = s0 + (s1 - s0) * float(rng.uniform(0.45, 0.65))
    parking_deck(site, shrink((s0, t0, cut, t1), 3.0))
    slab(site, shrink((cut, t0, s1, t1), 5.0), float(rng.uniform(8.0, 30.0)), True)
    site.trees(rect, 25.0, (4.0, 9.0))


def _podium_block(site: Site, rect: Rect) -> None:
    """Towers on podiums with courts."""
    rng, style = site.rng, site.style
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(style.pavement, 8.0))
    count = max(1, round((s1 - s0) / 62.0))
    for i in range(count):
        part = (s0 + i * (s1 - s0) / count, t0, s0 + (i + 1) * (s1 - s0) / count, t1)
        height = style.tower_m[1] * rng.uniform(0.35, 0.95)
        podium(site, shrink(part, 3.0), height)
    site.trees(rect, 20.0, (4.0, 8.0))


def _terminal(site: Site, rect: Rect) -> None:
    """Stacks of containers in rows under gantry cranes."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(site.style.asphalt, 10.0))
    row = t0 + 4.0
    while row + 16.0 < t1:
        high = 1 + int(rng.integers(1, 5))
        for s in np.arange(s0 + 8.0, s1 - 7.0, 12.8):
            for lane in range(5):
                if rng.random() < 0.85:
                    top = 2.6 * int(rng.integers(1, high + 1))
                    ring = site.centred_ring(s, row + 1.5 + lane * 2.7, (12.2, 2.45), 0.0)
                    prism(site.world.mesh, ring, 0.0, top, site.pick(CONTAINERS, 16.0))
        if rng.random() < 0.6:
            gantry(site, float(rng.uniform(s0 + 15.0, s1 - 15.0)), row - 1.5, row + 15.5)
        row += 16.0 + float(rng.uniform(6.0, 12.0))
    site.take(rect)


def _construction(site: Site, rect: Rect) -> None:
    """Bare soil, a shell of concrete, huts, heaps, one or two tower cranes."""
    rng, style = site.rng, site.style
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(style.soil, 12.0))
    top = float(rng.uniform(3.0, 0.55 * style.tower_m[1]))
    size = (s1 - s0) * rng.uniform(0.35, 0.6), (t1 - t0) * rng.uniform(0.35, 0.6)
    s, t = rng.uniform(s0 + 6.0, s1 - size[0] - 4.0), rng.uniform(t0 + 4.0, t1 - size[1] - 4.0)
    shell(site, (s, t, s + size[0], t + size[1]), top)
    for side in range(int(rng.integers(1, 3))):
        mast = min(top + float(rng.uniform(14.0, 26.0)), 0.95 * style.tower_m[1])
        crane(site, (s - 4.0, s + size[0] + 4.0)[side], t + size[1] / 2, mast)
    for _ in range(int(rng.integers(4, 16))):
        at = float(rng.uniform(s0 + 3.0, s1 - 3.0)), float(rng.uniform(t0 + 3.0, t1 - 3.0))
        if site.free(*at, 4.0):
            ring = site.centred_ring(*at, (float(rng.uniform(2.0, 9.0)), 2.5), math.pi / 2)
            prism(site.world.mesh, ring, 0.0, rng.uniform(0.6, 3.0), site.pick(CONTAINERS, 30.0))
    for _ in range(int(rng.integers(0, 4))):
        x, y = site.point(float(rng.uniform(s0, s1)), float(rng.uniform(t0, t1)))
        radius = float(rng.uniform(3.0, 7.0))
        heap = site.vary(style.soil, 10.0)
        site.world.mesh.ellipsoid(x, y, 0.0, radius, radius * 0.45, heap)


def _river(site: Site, rect: Rect) -> None:
    """Water from side to side and a bridge across it, with slopes up to its deck."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(site.style.grass, 8.0))
    bank = (t1 - t0) * float(rng.uniform(0.18, 0.3))
    basin = (s0, t0 + bank, s1, t1 - bank)
    site.fill(basin, site.vary(WATER, 6.0), water=True)
    site.take(basin)
    at = float(rng.uniform(s0 + 12.0, s1 - 12.0))
    wide, high = float(rng.uniform(7.0, 15.0)), float(rng.uniform(3.0, 7.0))
    bridge(site, (at, t0), (at, t1), wide, high, bank)
    site.take((at - wide / 2 - 1.0, t0, at + wide / 2 + 1.0, t1))
    site.trees(rect, 90.0, (5.0, 13.0))


RARER_BLOCKS = {
    "row_houses": _row_houses,
    "stadium": _stadium_block,
    "deck": _deck_block,
    "podium": _podium_block,
    "terminal": _terminal,
    "construction": _construction,
    "river": _river,
}
