"""Buildings on a site: houses, slabs, halls, towers, courtyards; roofs of every shape.

In: a `Site` and a local rectangle. Out: solids in the mesh, the rectangle marked as built on.
"""

import math
from dataclasses import replace

from geopose.sample_city.world.mesh import (
    Color,
    Facade,
    Kind,
    cap,
    flat_building,
    gable_building,
    prism,
    pyramid,
    regular_ring,
    shed_building,
    walls,
)
from geopose.sample_city.world.site import Rect, Site

GLASS: tuple[Color, ...] = ((70, 88, 104), (54, 66, 76), (82, 104, 112), (46, 54, 66))
STEEL: Color = (188.0, 190.0, 190.0)


def home_facade(site: Site) -> int:
    """Single windows in a plastered or brick wall."""
    rng = site.rng
    return site.world.mesh.facade(
        Facade(
            window=site.vary((56, 62, 72), 6.0),
            bay_m=rng.uniform(2.6, 3.6),
            floor_m=rng.uniform(3.0, 3.3),
            window_width=rng.uniform(0.38, 0.55),
            window_height=rng.uniform(0.45, 0.58),
        )
    )


def office_facade(site: Site) -> int:
    """Ribbons, a grid of wide windows, or a curtain wall."""
    rng = site.rng
    width, height = ((0.97, 0.5), (0.72, 0.62), (0.9, 0.8))[int(rng.integers(3))]
    return site.world.mesh.facade(
        Facade(
            window=site.pick(GLASS, 6.0),
            bay_m=rng.uniform(2.8, 4.5),
            floor_m=rng.uniform(3.4, 4.0),
            window_width=width,
            window_height=height,
        )
    )


def hall_facade(site: Site) -> int:
    """Metal cladding with a few high windows and doors."""
    return site.world.mesh.facade(
        Facade(window=site.vary((96, 102, 108), 8.0), bay_m=6.0, floor_m=6.5, window_height=0.3)
    )


def shrink(rect: Rect, by: float) -> Rect:
    """Rectangle with every side moved inwards."""
    s0, t0, s1, t1 = rect
    return s0 + by, t0 + by, s1 - by, t1 - by


def long_along_t(rect: Rect) -> bool:
    """Whether a rectangle's long side lies along t."""
    return rect[3] - rect[1] > rect[2] - rect[0]


def roof_equipment(site: Site, rect: Rect, z: float, density: float = 1.0) -> None:
    """Air handlers, stair heads and skylights as boxes on a flat roof."""
    rng = site.rng
    s0, t0, s1, t1 = shrink(rect, 2.0)
    if s1 - s0 < 3 or t1 - t0 < 3:
        return
    if site.style.clutter > 0.0:
        _roof_patches(site, (s0, t0, s1, t1), z)
        density *= site.style.clutter * rng.uniform(0.2, 1.6)
    roomy = min(s1 - s0, t1 - t0) > 4.0
    if (s1 - s0) * (t1 - t0) > 180 and rng.random() < 0.6 and roomy:
        size = rng.uniform(3.5, 7.0), rng.uniform(3.0, 5.0)
        s, t = rng.uniform(s0 + 2, s1 - 2), rng.uniform(t0 + 2, t1 - 2)
        ring = site.centred_ring(s, t, size, 0.0)
        prism(site.world.mesh, ring, z, z + rng.uniform(2.2, 3.6), site.pick(site.style.walls))
    if (s1 - s0) * (t1 - t0) > 900 and rng.random() < 0.5:
        _skylights(site, (s0, t0, s1, t1), z)
        density *= 0.4
    for _ in range(int(min(rng.poisson(density * (s1 - s0) * (t1 - t0) / 90), 24))):
        size = rng.uniform(1.2, 3.6), rng.uniform(1.2, 2.6)
        ring = site.centred_ring(rng.uniform(s0, s1), rng.uniform(t0, t1), size, 0.0)
        prism(site.world.mesh, ring, z, z + rng.uniform(0.7, 2.0), site.vary(STEEL, 16.0))


def _roof_patches(site: Site, rect: Rect, z: float) -> None:
    """Repaired and stained parts of a roof, and ducts and pipes along its sides."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    for number in range(int(rng.poisson(1.5 + 2.0 * site.style.clutter))):
        size = rng.uniform(0.1, 0.6) * (s1 - s0), rng.uniform(0.1, 0.6) * (t1 - t0)
        s, t = rng.uniform(s0, s1 - size[0]), rng.uniform(t0, t1 - size[1])
        ring = site.ring((s, t, s + size[0], t + size[1]))
        cap(mesh, ring, z + 0.01 * (number + 1), site.pick(site.style.flat_roofs), Kind.FLAT_ROOF)
    for _ in range(int(rng.poisson(1.5 * site.style.clutter))):
        along, length = rng.random() < 0.5, rng.uniform(0.2, 0.8)
        wide, high = rng.uniform(0.4, 1.6), rng.uniform(0.3, 1.5)
        size = (length * (s1 - s0), wide) if along else (wide, length * (t1 - t0))
        s, t = rng.uniform(s0, s1 - size[0]), rng.uniform(t0, t1 - size[1])
        ring = site.ring((s, t, s + size[0], t + size[1]))
        prism(mesh, ring, z, z + high, site.vary(STEEL, 30.0))


def _skylights(site: Site, rect: Rect, z: float) -> None:
    """A regular grid of low glass boxes on a large roof."""
    s0, t0, s1, t1 = rect
    step, glass = site.rng.uniform(7.0, 10.0), site.vary((150.0, 166.0, 176.0), 8.0)
    for i in range(1, int((s1 - s0) / step)):
        for j in range(1, int((t1 - t0) / step)):
            ring = site.centred_ring(s0 + i * step, t0 + j * step, (3.0, 1.6), 0.0)
            prism(site.world.mesh, ring, z, z + 0.5, glass)


def house(site: Site, rect: Rect, storeys: int) -> None:
    """Gable or hip house, now and then with a lower cross wing or a lean-to."""
    rng, mesh = site.rng, site.world.mesh
    wall, roof = site.pick(site.style.walls), site.pick(site.style.pitched_roofs)
    facade = home_facade(site)
    eave = 2.9 * storeys + rng.uniform(0.0, 0.5)
    along = long_along_t(rect)
    s0, t0, s1, t1 = rect
    width = min(s1 - s0, t1 - t0)
    rise = width / 2 * rng.uniform(0.5, 0.85)
    hip = width * rng.uniform(0.35, 0.5) if rng.random() < 0.4 else 0.0
    gable_building(mesh, site.ring(rect, along), 0.0, eave, eave + rise, wall, roof, facade, hip)
    if rng.random() < 0.45:
        wing, at = 0.62 * width, rng.uniform(0.1, 0.5)
        if along:
            start = t0 + at * (t1 - t0 - wing)
            part = (s1 - width / 2, start, s1 + 3.0, start + wing)
        else:
            start = s0 + at * (s1 - s0 - wing)
            part = (start, t1 - width / 2, start + wing, t1 + 3.0)
        ring = site.ring(part, not along)
        gable_building(mesh, ring, 0.0, eave - 0.3, eave + rise * 0.55, wall, roof, facade)
        site.take(part)
    elif rng.random() < 0.3:
        low = (s1, t0, s1 + 3.5, t1) if along else (s0, t1, s1, t1 + 3.5)
        ring = site.ring(low, along)
        ring = ring if along else ring[2:] + ring[:2]  # first edge = the low, outer side
        shed_building(mesh, ring, 0.0, 2.4, 3.4, wall, site.vary(roof, 10.0), facade)
        site.take(low)
    site.take(rect)


def slab(site: Site, rect: Rect, height: float, office: bool = False) -> None:
    """Flat block with parapet and equipment."""
    facade = office_facade(site) if office else home_facade(site)
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    parapet = 0.9 if site.rng.random() < 0.8 else 0.0
    flat_building(site.world.mesh, site.ring(rect), 0.0, height, wall, roof, facade, parapet)
    roof_equipment(site, rect, height - parapet)
    site.take(rect)


def angled_slab(site: Site, rect: Rect, height: float, office: bool) -> None:
    """L-shaped block: two overlapping wings under roofs of one colour."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    facade = office_facade(site) if office else home_facade(site)
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    deep = rng.uniform(0.38, 0.5)
    first = (s0, t0, s1, t0 + deep * (t1 - t0))
    second = (s0, t0, s0 + deep * (s1 - s0), t1)
    other = height if rng.random() < 0.5 else height * rng.uniform(0.55, 0.85)
    for part, top in ((first, height), (second, other)):
        flat_building(mesh, site.ring(part), 0.0, top, wall, roof, facade)
        site.take(part)
    roof_equipment(site, (s0 + deep * (s1 - s0), t0, s1, first[3]), height)


def pitched_block(site: Site, rect: Rect, eave: float) -> None:
    """Town house row or apartment block under a gable or hip roof."""
    width = min(rect[2] - rect[0], rect[3] - rect[1])
    ring = site.ring(rect, long_along_t(rect))
    hip = width / 2 if site.rng.random() < 0.4 else 0.0
    ridge = eave + width / 2 * site.rng.uniform(0.55, 0.8)
    wall, roof = site.pick(site.style.walls), site.pick(site.style.pitched_roofs)
    gable_building(site.world.mesh, ring, 0.0, eave, ridge, wall, roof, home_facade(site), hip)
    site.take(rect)


def hall(site: Site, rect: Rect) -> None:
    """Warehouse or factory: flat, low gable, or a row of saw-tooth sheds."""
    rng, mesh = site.rng, site.world.mesh
    wall, facade = site.pick(site.style.walls), hall_facade(site)
    height, form = rng.uniform(7.0, 13.0), rng.random()
    along = long_along_t(rect)
    if form < 0.45:
        roof = site.pick(site.style.flat_roofs)
        flat_building(mesh, site.ring(rect), 0.0, height, wall, roof, facade, 0.7)
        roof_equipment(site, rect, height - 0.7, 0.7)
    elif form < 0.8:
        rise = min(rect[2] - rect[0], rect[3] - rect[1]) * rng.uniform(0.08, 0.16)
        roof = site.pick(site.style.pitched_roofs)
        ring = site.ring(rect, along)
        gable_building(mesh, ring, 0.0, height, height + rise, wall, roof, facade)
    else:
        roof = site.pick(site.style.pitched_roofs)
        s0, t0, s1, t1 = rect
        count = max(2, int((s1 - s0 if not along else t1 - t0) / 9))
        for i in range(count):
            a, b = i / count, (i + 1) / count
            if along:
                part = (s0, t0 + a * (t1 - t0), s1, t0 + b * (t1 - t0))
            else:
                part = (s0 + a * (s1 - s0), t0, s0 + b * (s1 - s0), t1)
            ring = site.ring(part, not along)
            shed_building(mesh, ring, 0.0, height - 1.0, height + 2.0, wall, roof, facade)
    site.take(rect)


def tank(site: Site, s: float, t: float, radius: float) -> None:
    """Storage tank with a shallow cone on top."""
    height = site.rng.uniform(8.0, 14.0)
    color = site.vary((226, 224, 216), 8.0)
    ring = regular_ring(*site.point(s, t), radius, 20, 0.0)
    walls(site.world.mesh, ring, 0.0, height, color, kind=Kind.PLAIN)
    pyramid(site.world.mesh, ring, height, height + radius * 0.18, color)
    site.take((s - radius, t - radius, s + radius, t + radius))


def tower(site: Site, rect: Rect, height: float) -> None:
    """High-rise: plain, with setbacks, on a podium, or round."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    facade, form = office_facade(site), rng.random()
    side = min(s1 - s0, t1 - t0)
    site.take(rect)
    if form < 0.35:
        flat_building(mesh, site.ring(rect), 0.0, height, wall, roof, facade, 1.2)
        roof_equipment(site, rect, height - 1.2)
        return
    if form < 0.6:
        z, part = 0.0, rect
        for share in (0.45, 0.8, 1.0):
            flat_building(mesh, site.ring(part), z, share * height, wall, roof, facade, 0.8)
            z, part = share * height - 0.8, shrink(part, side * rng.uniform(0.07, 0.13))
        roof_equipment(site, part, height - 0.8)
        return
    base = rng.uniform(10.0, 18.0)
    podium = site.pick(site.style.walls)
    low = site.pick(site.style.flat_roofs)
    flat_building(mesh, site.ring(rect), 0.0, base, podium, low, office_facade(site), 0.8)
    if form < 0.88:
        part = shrink(rect, side * rng.uniform(0.12, 0.24))
        flat_building(mesh, site.ring(part), base - 0.8, height, wall, roof, facade, 1.0)
        roof_equipment(site, part, height - 1.0)
        return
    corners = 8 if rng.random() < 0.5 else 20
    centre = site.point((s0 + s1) / 2, (t0 + t1) / 2)
    turn = site.turn_rad + math.pi / 8
    ring = regular_ring(*centre, side * 0.4, corners, turn)
    flat_building(mesh, ring, base - 0.8, height, wall, roof, facade, 1.0)
    top = regular_ring(*centre, side * 0.18, corners, turn)
    prism(mesh, top, height - 1.0, height + 3.5, STEEL)


def complex_of_wings(site: Site, rect: Rect) -> None:
    """Hospital or campus: wings of several heights that meet and cross, some at an angle."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    facade = office_facade(site) if rng.random() < 0.6 else home_facade(site)
    low = rng.uniform(4.0, 9.0)
    top = low + rng.uniform(3.0, 14.0)
    if rng.random() < 0.5:
        top = max(top, rng.uniform(0.3, 0.9) * site.style.tower_m[1])
    centre = rng.uniform(s0, s1), rng.uniform(t0, t1)
    for number in range(int(rng.integers(3, 10))):
        size = rng.uniform(0.12, 0.6) * (s1 - s0), rng.uniform(0.12, 0.6) * (t1 - t0)
        s = rng.uniform(s0 + size[0] / 2, s1 - size[0] / 2)
        t = rng.uniform(t0 + size[1] / 2, t1 - size[1] / 2)
        pull = rng.uniform(0.0, 0.6)
        s, t = s + pull * (centre[0] - s) * 0.5, t + pull * (centre[1] - t) * 0.5
        height = low + (top - low) * rng.beta(0.8, 1.6) + 0.02 * number
        turned = rng.random() < 0.15
        side = min(size)
        ring = site.centred_ring(s, t, (side, side) if turned else size, math.pi / 4 * turned)
        if rng.random() < 0.3:
            wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
        flat_building(mesh, ring, 0.0, height, wall, roof, facade, rng.uniform(0.0, 1.0))
        part = (s - size[0] / 2, t - size[1] / 2, s + size[0] / 2, t + size[1] / 2)
        if not turned:
            roof_equipment(site, part, height)
        site.take(part)


def church(site: Site, rect: Rect) -> None:
    """Nave under a steep roof and a tower with an octagonal spire."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    wall, roof = site.vary((222, 212, 190), 5.0), site.vary((112, 88, 76), 8.0)
    facade = mesh.facade(replace(Facade(), bay_m=5.0, floor_m=11.0, window_width=0.3))
    middle, half = (t0 + t1) / 2, min((t1 - t0) / 2, 8.0)
    nave = (s0 + 8.0, middle - half, s1, middle + half)
    gable_building(mesh, site.ring(nave), 0.0, 12.0, 12.0 + half * 1.1, wall, roof, facade)
    height = rng.uniform(26.0, 34.0)
    ring = site.ring((s0, middle - 4.5, s0 + 9.0, middle + 4.5))
    walls(mesh, ring, 0.0, height, wall, facade)
    cap(mesh, ring, height, roof, Kind.FLAT_ROOF)
    spire = regular_ring(*site.point(s0 + 4.5, middle), 4.6, 8, site.turn_rad + math.pi / 8)
    pyramid(mesh, spire, height, height + rng.uniform(9.0, 16.0), site.vary((96, 124, 112), 8.0))
    site.take((s0, middle - half, s1, middle + half))
