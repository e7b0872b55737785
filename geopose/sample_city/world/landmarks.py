"""Buildings of rarer plans: crosses, stars, steps, courts, podiums, decks, stands, bridges, cranes.

In: a `Site` and a local rectangle. Out: solids in the mesh, the rectangle marked as built on. Only
the preset `real` builds these.
"""

import math

from geopose.sample_city.world.buildings import (
    STEEL,
    hall_facade,
    home_facade,
    office_facade,
    roof_equipment,
    shrink,
)
from geopose.sample_city.world.mesh import (
    Color,
    Kind,
    Point,
    cap,
    flat_building,
    gable_building,
    inset,
    prism,
    regular_ring,
    walls,
)
from geopose.sample_city.world.site import Rect, Site

CONCRETE: Color = (172.0, 168.0, 160.0)
_DECK_M = 1.3  # thickness of a bridge
_OVAL = 28  # corners of a stand


def special_block(site: Site, rect: Rect, height: float) -> None:
    """One building of a plan that is no rectangle and no L."""
    forms = (_cross, _steps, _star, _court, _terraces)
    forms[int(site.rng.integers(len(forms)))](site, rect, height)
    site.take(rect)


def _flat_parts(site: Site, parts: list[tuple[Rect, float]]) -> None:
    """Wings of one building: equal walls and roofs, parapets unless they cross."""
    rng, mesh = site.rng, site.world.mesh
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    facade = office_facade(site) if rng.random() < 0.5 else home_facade(site)
    for part, top in parts:
        flat_building(mesh, site.ring(part), 0.0, top, wall, roof, facade)
        roof_equipment(site, part, top)


def _cross(site: Site, rect: Rect, height: float) -> None:
    """Two wings that cross."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    wide, deep = rng.uniform(0.28, 0.45) * (s1 - s0), rng.uniform(0.28, 0.45) * (t1 - t0)
    s = s0 + rng.uniform(0.2, 0.8) * (s1 - s0 - wide)
    t = t0 + rng.uniform(0.2, 0.8) * (t1 - t0 - deep)
    other = height if rng.random() < 0.5 else height * rng.uniform(0.6, 0.95)
    _flat_parts(site, [((s, t0, s + wide, t1), height), ((s0, t, s1, t + deep), other)])


def _steps(site: Site, rect: Rect, height: float) -> None:
    """Sections side by side, each set back further than the one before."""
    rng = site.rng
    s0, t0, s1, t1 = rect
    count = int(rng.integers(3, 6))
    step, back = (s1 - s0) / count, (t1 - t0) * rng.uniform(0.08, 0.16)
    deep = (t1 - t0) - back * (count - 1)
    fall = rng.uniform(-0.12, 0.12)
    parts = []
    for i in range(count):
        at = t0 + i * back
        part = (s0 + i * step, at, s0 + (i + 1) * step, at + deep)
        parts.append((part, height * (1.0 + fall * i)))
    _flat_parts(site, parts)


def _terraces(site: Site, rect: Rect, height: float) -> None:
    """A slope of flats: every storey or two shorter than the one below, from one side."""
    rng, mesh = site.rng, site.world.mesh
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    facade = home_facade(site)
    s0, t0, s1, t1 = rect
    count = int(rng.integers(3, 6))
    for i in range(count):
        part = (s0, t0, s1, t1 - i * (t1 - t0) / (count + 1))
        low, top = height * i / count, height * (i + 1) / count
        flat_building(mesh, site.ring(part), low, top, wall, roof, facade, 0.6 * (i == count - 1))


def _star(site: Site, rect: Rect, height: float) -> None:
    """Three or four wings around one core."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    facade = office_facade(site) if rng.random() < 0.5 else home_facade(site)
    middle, reach = ((s0 + s1) / 2, (t0 + t1) / 2), min(s1 - s0, t1 - t0) / 2
    wide, count = reach * rng.uniform(0.45, 0.65), int(rng.integers(3, 5))
    first = rng.uniform(0, 2 * math.pi)
    for i in range(count):
        turn = first + i * 2 * math.pi / count
        s, t = (middle[j] + reach / 2 * f(turn) for j, f in ((0, math.cos), (1, math.sin)))
        ring = site.centred_ring(s, t, (reach, wide), turn)
        flat_building(mesh, ring, 0.0, height, wall, roof, facade)
        ring = site.centred_ring(s, t, (reach * 0.4, wide * 0.3), turn)
        prism(mesh, ring, height, height + rng.uniform(0.8, 2.5), site.vary(STEEL, 16.0))
    core = regular_ring(*site.point(*middle), wide * 0.62, 12, site.turn_rad + first)
    flat_building(mesh, core, 0.0, height + rng.uniform(1.0, 4.0), wall, roof, facade)


def _court(site: Site, rect: Rect, height: float) -> None:
    """Four wings around a paved court."""
    s0, t0, s1, t1 = rect
    deep = min(s1 - s0, t1 - t0) * site.rng.uniform(0.24, 0.34)
    site.fill(shrink(rect, deep), site.vary(site.style.pavement, 12.0))
    low = height if site.rng.random() < 0.5 else height * site.rng.uniform(0.4, 0.8)
    sides = [
        ((s0, t0, s1, t0 + deep), height),
        ((s0, t1 - deep, s1, t1), low),
        ((s0, t0 + deep, s0 + deep, t1 - deep), low),
        ((s1 - deep, t0 + deep, s1, t1 - deep), height),
    ]
    _flat_parts(site, sides)


def podium(site: Site, rect: Rect, height: float) -> None:
    """A podium around an open court, with towers on its corners."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    base = rng.uniform(6.0, 16.0)
    _court(site, rect, base)
    deep = min(s1 - s0, t1 - t0) * 0.3
    wall, roof = site.pick(site.style.walls), site.pick(site.style.flat_roofs)
    facade = office_facade(site)
    corners = ((s0, t0), (s1 - deep, t1 - deep), (s1 - deep, t0), (s0, t1 - deep))
    for s, t in corners[: int(rng.integers(1, 4))]:
        part = shrink((s, t, s + deep, t + deep), rng.uniform(0.5, 2.0))
        top = max(height * rng.uniform(0.6, 1.0), base + 8.0)
        flat_building(mesh, site.ring(part), 0.0, top, wall, roof, facade, 1.0)
        roof_equipment(site, part, top - 1.0)
    site.take(rect)


def parking_deck(site: Site, rect: Rect) -> None:
    """A car park of several open storeys, cars on the top one, a head over the stairs."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    height = 3.1 * int(rng.integers(2, 7)) + 1.0
    facade = hall_facade(site) if rng.random() < 0.2 else office_facade(site)
    wall = site.vary(CONCRETE, 14.0)
    top = site.vary(CONCRETE if rng.random() < 0.6 else site.style.asphalt, 12.0)
    flat_building(mesh, site.ring(rect), 0.0, height, wall, top, facade, 1.0)
    level, filled = height - 1.0, rng.uniform(0.1, 0.8)
    row = t0 + 1.2
    while row + 5.0 < t1 - 1.0:
        for s in _steps_of(s0 + 2.5, s1 - 2.5, 2.7):
            if rng.random() < filled:
                site.car(s, row + 2.5, math.pi / 2, level)
        row += 11.5 if int((row - t0) / 5.0) % 2 == 0 else 5.4
    head = site.centred_ring(s0 + 5.0, t0 + 5.0, (5.0, 4.0), 0.0)
    prism(mesh, head, level, level + 3.4, wall)
    if rng.random() < 0.5:  # the way up: a slope along one side
        middle = (t0 + t1) / 2
        low, high = site.ring((s0 + 9.0, middle - 3.0, s1 - 3.0, middle + 3.0)), level + 2.0
        a, b, c, d = low
        mesh.face([(*a, level), (*b, high), (*c, high), (*d, level)], Kind.PLAIN, top)
        walls(mesh, low, level, [level, high, high, level], wall, kind=Kind.PLAIN)
    site.take(rect)


def _steps_of(start: float, end: float, step: float) -> list[float]:
    return [start + i * step for i in range(max(int((end - start) / step), 0))]


def bridge(site: Site, a: Point, b: Point, width_m: float, deck_m: float, ramp_m: float) -> None:
    """A road on piers between two local points, with slopes at both ends if `ramp_m` > 0.

    What is under it is seen from the side only; its deck is what has a height.
    """
    rng, mesh = site.rng, site.world.mesh
    length = math.hypot(b[0] - a[0], b[1] - a[1])
    us, ut = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    turn = math.atan2(ut, us)

    def at(along: float, across: float) -> Point:
        return site.point(a[0] + us * along - ut * across, a[1] + ut * along + us * across)

    def strip(low: float, high: float, left: float, right: float) -> list[Point]:
        return [at(low, left), at(high, left), at(high, right), at(low, right)]

    road, side = site.vary(site.style.asphalt, 12.0), site.vary(CONCRETE, 12.0)
    half, start, end = width_m / 2, ramp_m, length - ramp_m
    deck = strip(start, end, -half, half)
    walls(mesh, deck, deck_m - _DECK_M, deck_m, side, kind=Kind.PLAIN)
    cap(mesh, deck, deck_m, road, Kind.FLAT_ROOF)
    for left, right in ((-half, 0.4 - half), (half - 0.4, half)):
        prism(mesh, strip(start, end, left, right), deck_m, deck_m + 0.9, side)
    for along in _steps_of(start + 8.0, end - 4.0, 24.0):
        prism(mesh, strip(along, along + 1.5, -0.6 * half, 0.6 * half), 0.0, deck_m - 1.0, side)
    for low, high, up in ((0.0, start, 1), (end, length, 0)) if ramp_m > 0.0 else ():
        ring, tops = strip(low, high, -half, half), [0.0, deck_m, deck_m, 0.0]
        tops = tops if up else [deck_m, 0.0, 0.0, deck_m]
        walls(mesh, ring, 0.0, tops, side, kind=Kind.PLAIN)
        mesh.face([(*p, z) for p, z in zip(ring, tops, strict=True)], Kind.FLAT_ROOF, road)
    for along in _steps_of(start + 3.0, end - 3.0, 10.0):
        stripe = strip(along, along + 4.0, -0.15, 0.15)
        cap(mesh, stripe, deck_m + 0.01, (206.0, 204.0, 196.0), Kind.PLAIN)
    for along in _steps_of(start + 4.0, end - 4.0, 9.0):
        for lane in (-0.5, 0.5):
            if rng.random() < 0.3:
                s = a[0] + us * along - ut * lane * half
                t = a[1] + ut * along + us * lane * half
                site.car(s, t, turn, deck_m)


def stadium(site: Site, rect: Rect) -> None:
    """A pitch in an oval of rising stands, open or partly roofed."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    middle, a, b = ((s0 + s1) / 2, (t0 + t1) / 2), (s1 - s0) / 2, (t1 - t0) / 2
    depth = min(a, b) * rng.uniform(0.25, 0.4)
    top = min(max(depth * rng.uniform(0.45, 0.8), 7.0), 26.0)
    turf, seats = site.vary((88.0, 122.0, 66.0), 9.0), site.pick(site.style.walls, 20.0)
    wall = site.vary(CONCRETE, 14.0)

    def oval(by: float) -> list[Point]:
        steps = [2 * math.pi * i / _OVAL for i in range(_OVAL)]
        point = [(math.cos(t) * (a - by), math.sin(t) * (b - by)) for t in steps]
        return [site.point(middle[0] + s, middle[1] + t) for s, t in point]

    length, wide = (a - depth) * 0.72, (b - depth) * 0.68
    track = (middle[0] - length, middle[1] - wide, middle[0] + length, middle[1] + wide)
    site.fill(rect, site.vary(site.style.pavement, 10.0))
    site.oval((a - depth, b - depth), middle, site.vary((152.0, 92.0, 76.0), 14.0))
    site.fill(track, turf)
    for s in (track[0], middle[0], track[2]):
        site.line((s, track[1]), (s, track[3]), (226.0, 228.0, 220.0), 0.4)
    for t in (track[1], track[3]):
        site.line((track[0], t), (track[2], t), (226.0, 228.0, 220.0), 0.4)
    outer, inner = oval(0.0), oval(depth)
    walls(mesh, outer, 0.0, top, wall, hall_facade(site))
    walls(mesh, inner[::-1], 0.0, 1.5, wall, kind=Kind.PLAIN)
    roofed = rng.random() < 0.5
    for i in range(_OVAL):
        j = (i + 1) % _OVAL
        low, high = ((*inner[i], 1.5), (*inner[j], 1.5)), ((*outer[i], top), (*outer[j], top))
        color = site.vary(seats, 6.0) if i % 7 else wall
        mesh.face([high[0], high[1], low[1]], Kind.PLAIN, color)
        mesh.face([high[0], low[1], low[0]], Kind.PLAIN, color)
    walls(mesh, outer[::-1], top - 0.1, top, wall, kind=Kind.PLAIN)
    if roofed:
        cover, edge = oval(depth * 0.55), top + rng.uniform(3.0, 7.0)
        covered = range(_OVAL) if rng.random() < 0.5 else range(4, 4 + _OVAL // 3)
        color = site.vary((222.0, 222.0, 218.0), 12.0)
        for i in covered:
            j = (i + 1) % _OVAL
            ring = [outer[i], outer[j], cover[j], cover[i]]
            flat = [(*p, edge) for p in ring]
            mesh.face(flat, Kind.FLAT_ROOF, color)
            walls(mesh, ring, edge - 0.8, edge, color, kind=Kind.PLAIN)
    site.take(rect)


def crane(site: Site, s: float, t: float, height: float) -> None:
    """A tower crane: a thin mast, its jib and counter-jib, the weight at the end."""
    mesh, turn = site.world.mesh, float(site.rng.uniform(0, 2 * math.pi))
    jib = float(site.rng.uniform(30.0, 55.0))
    color = site.vary((226.0, 186.0, 52.0), 18.0)
    cos, sin = math.cos(turn), math.sin(turn)
    prism(mesh, site.centred_ring(s, t, (1.8, 1.8), turn), 0.0, height + 4.0, color)
    for low, high, wide in ((-14.0, 0.0, 1.6), (0.0, jib, 1.2)):
        middle = (low + high) / 2
        ring = site.centred_ring(s + cos * middle, t + sin * middle, (high - low, wide), turn)
        prism(mesh, ring, height, height + 1.2, color)
    weight = site.centred_ring(s - cos * 12.0, t - sin * 12.0, (3.0, 2.6), turn)
    prism(mesh, weight, height - 2.5, height + 1.2, CONCRETE)


def shell(site: Site, rect: Rect, height: float) -> None:
    """A building under construction: a bare slab, columns of the next storey, a core."""
    rng, mesh = site.rng, site.world.mesh
    color = site.vary(CONCRETE, 14.0)
    flat_building(mesh, site.ring(rect), 0.0, height, color, color, office_facade(site))
    inner = shrink(rect, 1.5)
    for s in _steps_of(inner[0], inner[2], 6.0):
        for t in _steps_of(inner[1], inner[3], 6.0):
            if rng.random() < 0.8:
                prism(mesh, site.centred_ring(s, t, (0.7, 0.7), 0.0), height, height + 3.0, color)
    middle = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
    core = site.centred_ring(*middle, (7.0, 6.0), 0.0)
    walls(mesh, core, height, height + 6.0, color, kind=Kind.PLAIN)
    cap(mesh, core, height + 6.0, (96.0, 94.0, 92.0), Kind.PLAIN)
    site.take(rect)


def row_of_houses(site: Site, rect: Rect, storeys: int) -> None:
    """Narrow houses wall to wall along s, each with a roof of its own; some with a porch."""
    rng, mesh = site.rng, site.world.mesh
    s0, t0, s1, t1 = rect
    wide, facade = rng.uniform(5.2, 7.5), home_facade(site)
    count = max(int((s1 - s0) / wide), 1)
    pitched = rng.random() < 0.65
    wall, roof = site.pick(site.style.walls), site.pick(site.style.pitched_roofs)
    for i in range(count):
        part = (s0 + i * (s1 - s0) / count, t0, s0 + (i + 1) * (s1 - s0) / count, t1)
        if rng.random() < 0.4:
            wall, roof = site.pick(site.style.walls), site.pick(site.style.pitched_roofs)
        eave = 2.9 * storeys + rng.uniform(-0.3, 0.5)
        if pitched:
            ridge = eave + (t1 - t0) / 2 * 0.7
            gable_building(mesh, site.ring(part), 0.0, eave, ridge, wall, roof, facade)
        else:
            color = site.pick(site.style.flat_roofs)
            flat_building(mesh, site.ring(part), 0.0, eave + 1.0, wall, color, facade, 0.6)
        if rng.random() < 0.5:
            low = site.ring((part[0] + 0.3, t1, part[0] + 3.2, t1 + rng.uniform(2.0, 4.0)))
            prism(mesh, low, 0.0, rng.uniform(2.4, 3.2), wall, roof)
    site.take((s0, t0, s1, t1 + 4.0))


def gantry(site: Site, s: float, t0: float, t1: float) -> None:
    """A crane of a container yard: a beam over the rows on four thin legs."""
    mesh, high = site.world.mesh, float(site.rng.uniform(16.0, 22.0))
    color = site.vary((70.0, 104.0, 150.0), 26.0)
    for side in (-5.0, 5.0):
        for t in (t0, t1):
            prism(mesh, site.centred_ring(s + side, t, (1.2, 1.2), 0.0), 0.0, high, color)
        beam = site.ring((s + side - 0.9, t0 - 6.0, s + side + 0.9, t1 + 6.0))
        walls(mesh, beam, high - 2.0, high, color, kind=Kind.PLAIN)
        cap(mesh, inset(beam, 0.01), high, color, Kind.PLAIN)
    cab = site.centred_ring(s, (t0 + t1) / 2, (11.0, 4.0), 0.0)
    prism(mesh, cab, high - 1.5, high + 1.5, color)
