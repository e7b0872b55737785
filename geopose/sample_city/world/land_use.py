"""What a block is used for: houses, slabs, shops, towers, halls, parks, filled by the style.

In: an empty `Site`. Out: the same with buildings, trees, cars and ground on it.
"""

import math

import numpy as np

from geopose.sample_city.world.buildings import (
    angled_slab,
    church,
    complex_of_wings,
    hall,
    home_facade,
    house,
    long_along_t,
    pitched_block,
    shrink,
    slab,
    tank,
    tower,
)
from geopose.sample_city.world.landmarks import parking_deck, special_block
from geopose.sample_city.world.mesh import gable_building, prism
from geopose.sample_city.world.rarer_blocks import CONTAINERS, RARER_BLOCKS, WATER
from geopose.sample_city.world.site import Rect, Site

STOREY_M = 3.2
_DEEPEST_LOTS_M = 78.0


def fill_block(site: Site) -> None:
    """Chooses a use for the block, paints kerb and pavement, and builds it."""
    style, rng = site.style, site.rng
    names = list(style.blocks)
    weights = np.array(list(style.blocks.values()))
    use = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    site.fill(site.rect, site.vary((186, 184, 178), 4.0))
    site.fill(shrink(site.rect, 0.5), site.vary(style.pavement, 5.0))
    inner = shrink(site.rect, 2.6)
    if style.clutter > 0.0:
        _patches(site)
    BLOCKS[use](site, inner)
    for rect, color in site.later if use not in ("pond", "river", "stadium") else ():
        site.fill(rect, color)
    if use not in ("park", "pond"):
        _street_trees(site)


def _patches(site: Site) -> None:
    """Trodden, mended, paved and planted parts of the open ground, dark and bright."""
    rng, style = site.rng, site.style
    s0, t0, s1, t1 = site.rect
    colors = (style.asphalt, style.pavement, style.soil, style.grass, (60.0, 60.0, 62.0))
    for _ in range(int(rng.poisson(14 * style.clutter))):
        s, t = float(rng.uniform(s0, s1)), float(rng.uniform(t0, t1))
        rect = (s, t, s + float(rng.uniform(2.0, 18.0)), t + float(rng.uniform(2.0, 18.0)))
        site.later.append((rect, site.pick(colors, 14.0)))


def _street_trees(site: Site) -> None:
    """A row of young trees on the pavement along some sides of a block."""
    s0, t0, s1, t1 = shrink(site.rect, 1.6)
    rng = site.rng
    for side in range(4):
        if rng.random() > 0.45 * site.style.tree_density:
            continue
        length = s1 - s0 if side < 2 else t1 - t0
        for at in np.arange(4.0, length - 3.0, rng.uniform(8.0, 13.0)):
            if side < 2:
                s, t = s0 + at, (t0, t1)[side]
            else:
                s, t = (s0, s1)[side - 2], t0 + at
            if rng.random() < 0.85:
                site.tree(s, t, rng.uniform(5.0, 8.5), rng.uniform(1.7, 2.8))


def _houses(site: Site, rect: Rect) -> None:
    """Two rows of lots back to back: house, drive, lawn, trees."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    if t1 - t0 > _DEEPEST_LOTS_M:  # a lane through the middle gives the inside its own houses
        middle = (t0 + t1) / 2
        site.fill((s0, middle - 3.5, s1, middle + 3.5), site.style.asphalt)
        _houses(site, (s0, t0, s1, middle - 3.5))
        _houses(site, (s0, middle + 3.5, s1, t1))
        return
    site.fill(rect, site.vary(site.style.grass, 8.0))
    middle, start = (t0 + t1) / 2, s0
    storeys = 1 if rng.random() < 0.35 else 2
    while start + 13.0 < s1:
        lot = min(float(rng.uniform(15.0, 21.0)), s1 - start)
        for front, back in ((t0, middle), (t1, middle)):
            sign = 1.0 if back > front else -1.0
            deep = min(abs(back - front) * 0.45, rng.uniform(10.0, 15.0))
            set_back = rng.uniform(4.5, 8.0)
            wide = lot - rng.uniform(4.0, 6.5)
            near, far = front + sign * set_back, front + sign * (set_back + deep)
            drive = start + 0.4, min(front, near), start + 3.2, max(front, near)
            site.fill(drive, site.vary(site.style.pavement, 8.0))
            if rng.random() < 0.5:
                site.car((drive[0] + drive[2]) / 2, (drive[1] + drive[3]) / 2, math.pi / 2)
            home = (start + 2.0, min(near, far), start + 2.0 + wide, max(near, far))
            house(site, home, storeys)
            if rng.random() < 0.15:
                s, t = start + rng.uniform(4.0, lot - 4.0), back - sign * 4.0
                site.fill((s - 3.5, t - 2.0, s + 3.5, t + 2.0), (78, 158, 176))
                site.take((s - 3.5, t - 2.0, s + 3.5, t + 2.0))
        start += lot
    site.trees(rect, 65.0, (5.0, 13.0))


def _apartments(site: Site, rect: Rect) -> None:
    """Parallel slabs on lawns with parking between them."""
    rng, style = site.rng, site.style
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(style.grass, 8.0))
    height = STOREY_M * float(rng.uniform(*style.storeys)) * (0.75 + 0.5 * site.centrality)
    row, pitched = t0 + 3.0, rng.random() < 0.4
    while row + 12.0 < t1:
        deep = rng.uniform(11.0, 15.0)
        start, end = s0 + 3.0, s1 - 3.0
        count = 1 if end - start < 55 else 2
        step = (end - start) / count
        for i in range(count):
            end_s = start + (i + 1) * step - (8.0 if count > 1 else 0.0)
            part = (start + i * step, row, end_s, min(row + deep, t1))
            if pitched:
                pitched_block(site, part, height)
            elif style.rarer > 0.0 and t1 - row > 34 and rng.random() < style.rarer:
                special_block(site, (*part[:3], row + 30.0), height)
            elif rng.random() < 0.2 and t1 - row > 30:
                angled_slab(site, (*part[:3], row + 26.0), height, False)
            else:
                slab(site, part, height * rng.uniform(0.9, 1.1))
        row += deep + 3.0
        gap = rng.uniform(14.0, 24.0)
        if row + gap < t1:
            site.parking((s0 + 4.0, row + 4.0, s1 - 4.0, row + gap - 4.0), 0.6)
        row += gap
    site.trees(rect, 55.0, (5.0, 12.0))


def _commercial(site: Site, rect: Rect) -> None:
    """One large flat building, or an L, in front of its parking lot."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(site.style.pavement, 8.0))
    cut = t0 + (t1 - t0) * rng.uniform(0.5, 0.75)
    office = rng.random() < 0.5
    height = rng.uniform(10.0, 20.0) * (0.8 + 0.6 * site.centrality) if office else None
    box = shrink((s0, t0, s1, cut), 2.0)
    if rng.random() < 0.35:
        angled_slab(site, box, height or rng.uniform(6.0, 10.0), office)
    else:
        parts = int(rng.integers(1, 3))
        step = (box[2] - box[0]) / parts
        for i in range(parts):
            part = (box[0] + i * step, box[1], box[0] + (i + 1) * step - 0.2 * i, box[3])
            slab(site, part, (height or rng.uniform(5.5, 9.0)) * rng.uniform(0.8, 1.15), office)
    site.parking((s0 + 1.0, cut + 2.0, s1 - 1.0, t1 - 1.0), 0.55)
    site.trees((s0, cut, s1, t1), 12.0, (4.0, 8.0))


def _downtown(site: Site, rect: Rect) -> None:
    """Parcels with high-rises in the centre, mid-rises and plazas around."""
    rng = site.rng
    site.fill(rect, site.vary(site.style.pavement, 8.0))
    s0, t0, s1, t1 = rect
    columns = max(1, round((s1 - s0) / rng.uniform(32.0, 46.0)))
    rows = max(1, round((t1 - t0) / rng.uniform(32.0, 46.0)))
    for i in range(columns):
        for j in range(rows):
            parcel = (
                s0 + i * (s1 - s0) / columns,
                t0 + j * (t1 - t0) / rows,
                s0 + (i + 1) * (s1 - s0) / columns,
                t0 + (j + 1) * (t1 - t0) / rows,
            )
            _parcel(site, shrink(parcel, rng.uniform(1.0, 3.0)))


def _parcel(site: Site, rect: Rect) -> None:
    rng, style = site.rng, site.style
    chance = rng.random()
    if chance < 0.25 + 0.35 * site.centrality:
        low, high = style.tower_m
        share = rng.beta(1.3, 2.0) * (0.45 + 0.55 * site.centrality)
        tower(site, rect, low + (high - low) * share)
    elif chance < 0.88:
        height = STOREY_M * float(rng.uniform(*style.storeys)) * (0.7 + 0.7 * site.centrality)
        if style.rarer > 0.0 and rng.random() < style.rarer:
            special_block(site, rect, height)
        elif rng.random() < 0.25:
            angled_slab(site, rect, height, True)
        else:
            slab(site, rect, height, rng.random() < 0.6)
    elif chance < 0.94:
        site.parking(rect, 0.7)
    else:
        site.fill(shrink(rect, 3.0), site.vary(style.grass, 8.0))
        site.trees(rect, 130.0, (5.0, 10.0))


def _courtyard(site: Site, rect: Rect) -> None:
    """Closed perimeter of town houses around a yard."""
    rng, style = site.rng, site.style
    site.fill(rect, site.vary(style.soil if rng.random() < 0.3 else style.grass, 9.0))
    s0, t0, s1, t1 = rect
    deep = float(rng.uniform(10.0, 13.5))
    storeys = float(rng.uniform(*style.storeys)) * (0.8 + 0.35 * site.centrality)
    sides = (
        (s0, t0, s1, t0 + deep),
        (s0, t1 - deep, s1, t1),
        (s0, t0 + deep, s0 + deep, t1 - deep),
        (s1 - deep, t0 + deep, s1, t1 - deep),
    )
    for side in sides:
        if rng.random() < 0.06:
            continue
        along = long_along_t(side)
        start, end = (side[1], side[3]) if along else (side[0], side[2])
        while end - start > 9.0:
            length = float(rng.uniform(14.0, 30.0))
            length = end - start if end - start - length < 12.0 else length
            stop = start + length
            part = (side[0], start, side[2], stop) if along else (start, side[1], stop, side[3])
            _town_house(site, part, along, STOREY_M * storeys * rng.uniform(0.85, 1.12))
            start = stop
    yard = shrink(rect, deep + 4.0)
    if yard[2] - yard[0] > 16 and yard[3] - yard[1] > 16 and rng.random() < 0.5:
        s, t = rng.uniform(yard[0], yard[2] - 12.0), rng.uniform(yard[1], yard[3] - 9.0)
        slab(site, (s, t, s + 12.0, t + 9.0), rng.uniform(3.5, 7.0))
    site.trees(yard, 110.0, (6.0, 13.0))


def _town_house(site: Site, part: Rect, along: bool, height: float) -> None:
    """One house of a closed row; its ridge runs with the street."""
    rng, style = site.rng, site.style
    if rng.random() < 0.12:
        slab(site, part, height + 2.0)
        return
    width = part[2] - part[0] if along else part[3] - part[1]
    ridge = height + width / 2 * rng.uniform(0.6, 0.85)
    wall, roof = site.pick(style.walls), site.pick(style.pitched_roofs)
    ring = site.ring(part, along)
    gable_building(site.world.mesh, ring, 0.0, height, ridge, wall, roof, home_facade(site))
    site.take(part)


def _industrial(site: Site, rect: Rect) -> None:
    """Halls, a tank farm or a container yard."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(site.style.soil if rng.random() < 0.5 else site.style.asphalt, 8.0))
    cut = s0 + (s1 - s0) * rng.uniform(0.4, 0.62)
    hall(site, shrink((s0, t0, cut, t1), rng.uniform(3.0, 8.0)))
    rest, form = shrink((cut, t0, s1, t1), 4.0), rng.random()
    if form < 0.4:
        middle = (rest[1] + rest[3]) / 2
        hall(site, (rest[0], rest[1], rest[2], middle - 3.0))
        site.parking((rest[0], middle + 2.0, rest[2], rest[3]), 0.5)
    elif form < 0.7:
        radius = rng.uniform(6.0, 10.0)
        for s in np.arange(rest[0] + radius, rest[2] - radius, 2.6 * radius):
            for t in np.arange(rest[1] + radius, rest[3] - radius, 2.6 * radius):
                if rng.random() < 0.8:
                    tank(site, s, t, radius * rng.uniform(0.7, 1.0))
    else:
        for t in np.arange(rest[1] + 3.0, rest[3] - 3.0, 5.5):
            for s in np.arange(rest[0] + 7.0, rest[2] - 6.0, 13.0):
                if rng.random() < 0.75:
                    high = 2.6 * int(rng.integers(1, 4))
                    ring = site.centred_ring(s, t, (12.2, 2.5), 0.0)
                    prism(site.world.mesh, ring, 0.0, high, site.pick(CONTAINERS, 12.0))
    site.trees(rect, 8.0, (4.0, 8.0))


def _park(site: Site, rect: Rect) -> None:
    """Lawn, two paths, many trees."""
    site.fill(rect, site.vary(site.style.grass, 8.0))
    s0, t0, s1, t1 = rect
    path = site.vary(site.style.soil, 8.0)
    site.line((s0, t0), (s1, t1), path, 2.6)
    site.line((s0, (t0 + t1) / 2), (s1, t1 - (t1 - t0) / 4), path, 2.2)
    site.trees(rect, 100.0, (7.0, 18.0))


def _pond(site: Site, rect: Rect) -> None:
    """Water with a planted bank."""
    site.fill(rect, site.vary(site.style.grass, 8.0))
    basin = shrink(rect, 9.0)
    site.fill(basin, site.vary(WATER, 6.0), water=True)
    site.take(basin)
    site.trees(rect, 160.0, (6.0, 14.0))


def _parking_block(site: Site, rect: Rect) -> None:
    """A whole block of parking, sometimes with a multi-storey car park."""
    site.fill(rect, site.vary(site.style.asphalt, 6.0))
    s0, t0, s1, t1 = rect
    cut = (s0 + s1) / 2
    if site.rng.random() < 0.5:
        box = shrink((s0, t0, cut, t1), 4.0)
        if site.style.rarer > 0.0:
            parking_deck(site, box)
        else:
            slab(site, box, site.rng.uniform(9.0, 18.0))
        site.parking((cut + 1.0, t0 + 1.0, s1 - 1.0, t1 - 1.0), 0.6)
    else:
        site.parking(shrink(rect, 1.0), 0.55)


def _church_block(site: Site, rect: Rect) -> None:
    """A church on a square with trees."""
    site.fill(rect, site.vary(site.style.pavement, 8.0))
    box = shrink(rect, 8.0)
    church(site, (box[0], box[1], min(box[2], box[0] + 52.0), box[3]))
    site.trees(rect, 70.0, (6.0, 12.0))


def _campus(site: Site, rect: Rect) -> None:
    """One building of many wings between lawns and car parks."""
    rng, style = site.rng, site.style
    s0, t0, s1, t1 = rect
    site.fill(rect, site.vary(style.grass if rng.random() < 0.5 else style.pavement, 9.0))
    cut = t0 + (t1 - t0) * rng.uniform(0.6, 1.0)
    complex_of_wings(site, (s0, t0, s1, cut))
    if t1 - cut > 12.0:
        site.parking((s0 + 1.0, cut + 1.0, s1 - 1.0, t1 - 1.0), 0.6)
    site.trees(rect, 60.0, (4.0, 14.0))


BLOCKS = {
    "houses": _houses,
    "apartments": _apartments,
    "commercial": _commercial,
    "downtown": _downtown,
    "courtyard": _courtyard,
    "industrial": _industrial,
    "park": _park,
    "pond": _pond,
    "parking": _parking_block,
    "church": _church_block,
    "campus": _campus,
    **RARER_BLOCKS,
}
