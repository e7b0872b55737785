"""Renders a scene of a real height field with invented colours; exact heights and flow.

In: a `District`, scene index, size, seed. Out: a `Scene`, as of the synthetic cities. Each scene
turns and mirrors the district, makes it larger or smaller and each building taller or lower, and
draws its own camera, sun and colours as the preset `real` does.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.sample_city.view.lidar import drawn_survey, survey_columns
from geopose.sample_city.view.march import sample, seen_heights, shadow_heights
from geopose.sample_city.view.raster import View
from geopose.sample_city.view.render import Scene, scene_id, shape_of
from geopose.sample_city.view.sensor import expose
from geopose.sample_city.view.shade import (
    brighter_walls,
    ground_light,
    mottle,
    openness,
    pulse,
    sun_vector,
)
from geopose.sample_city.world.cities import CITIES, SceneParameters, real_scene
from geopose.sample_city.world.district import Cover, District
from geopose.sample_city.world.mesh import Color
from geopose.sample_city.world.site import CAR_PAINTS

Map = NDArray[np.float32]
_SUN_REACH_PX = 280  # of ground beside the image that may throw shadows into it
_BIAS_M = 0.5
_TALLEST_M = 110.0


@dataclass
class Plan:
    """A piece of the district on the ground's pixel grid, with colours.

    Attributes:
        height_m: of the columns. color: as displayed, 0..255. cover: `Cover`.
        buildings: number of the building. wall: (n, 3) colours of their facades.
        turn_rad: direction of the district's axes in the image.
        origin_px: of the image's first pixel on this grid (x, y).
    """

    height_m: Map
    color: Map
    cover: NDArray[np.uint8]
    buildings: NDArray[np.int32]
    unknown: NDArray[np.bool_]
    wall: Map
    turn_rad: float
    origin_px: tuple[int, int]


def district_parameters(name: str, index: int, seed: int) -> SceneParameters:
    """Camera, sun and colours of a scene; the same arguments give the same."""
    key = int.from_bytes(f"dsm {name}".encode())
    rng = np.random.default_rng(np.random.SeedSequence([seed, key, index]))
    styles = list(CITIES.values())
    return real_scene(styles[int(rng.integers(len(styles)))], rng)


def render_district(
    district: District,
    index: int,
    size: int | tuple[int, int],
    seed: int,
    lidar: bool = False,
) -> Scene:
    """Renders scene `index` of a district; the same arguments give the same arrays.

    Args:
        district: of `read_district`.
        index: scene number, 0 or more.
        size: pixels, one number or (height, width).
        seed: 0 or more.
        lidar: also measure heights as in `lidar`; the image is the same.

    Raises:
        InputError: size out of range.
    """
    shape = shape_of(size)
    scene = district_parameters(district.name, index, seed)
    plan = _plan(district, scene, shape)
    agl = seen_heights(plan.height_m, scene.k, plan.origin_px, shape)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x += plan.origin_px[0] + agl * np.float32(scene.k[0])
    y += plan.origin_px[1] + agl * np.float32(scene.k[1])
    radiance = _light(scene, plan, agl, x, y)
    measured, report = None, None
    if lidar:
        survey, view = (
            drawn_survey(district.name, index, seed),
            View(scene.k, scene.gsd_m, (0, 0), shape),
        )
        measured, report = survey_columns(survey, view, agl, sample(plan.cover, x, y) == Cover.TREE)
    return Scene(
        image_id=scene_id(district.name, index),
        city=district.name,
        rgb=expose(scene, radiance),
        agl_m=agl,
        nodata=sample(plan.unknown.astype(np.uint8), x, y) > 0,
        scale_px_per_m=scene.scale_px_per_m,
        angle_rad=scene.angle_rad,
        gsd_m=scene.gsd_m,
        parameters=scene,
        measured_m=measured,
        survey=report,
    )


def _plan(district: District, scene: SceneParameters, shape: tuple[int, int]) -> Plan:
    """Cuts the ground under the image, and around it as far as leans and shadows reach."""
    rng, gsd = scene.rng, scene.gsd_m
    factors = np.exp(rng.normal(-0.1, 0.3, int(district.buildings.max()) + 1)).astype(np.float32)
    factors = np.minimum(factors, _TALLEST_M / max(float(district.agl_m.max()), 1.0))
    factors[0] = rng.uniform(0.7, 1.3)
    zoom, turn = float(rng.uniform(0.75, 1.3)), float(rng.uniform(0, 2 * math.pi))
    tallest = float((district.agl_m * factors[district.buildings]).max())
    lean = tallest * math.hypot(*scene.k)
    margin = math.ceil(max(lean, min(tallest * math.hypot(*scene.sun_k), _SUN_REACH_PX))) + 2
    rows, columns = shape[0] + 2 * margin, shape[1] + 2 * margin
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    x, y = (x - columns / 2) * (gsd / zoom), (y - rows / 2) * (gsd / zoom)
    if rng.random() < 0.5:
        x = -x
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    height, width = district.agl_m.shape
    start = rng.uniform(0, height), rng.uniform(0, width)
    i = _mirrored((sin * x + cos * y) / district.cell_m + start[0], height)
    j = _mirrored((cos * x - sin * y) / district.cell_m + start[1], width)
    buildings = district.buildings[i, j]
    plan = Plan(
        height_m=district.agl_m[i, j] * factors[buildings],
        color=np.zeros((rows, columns, 3), np.float32),
        cover=district.cover[i, j],
        buildings=buildings,
        unknown=district.unknown[i, j],
        wall=_pick(rng, scene.style.walls, len(factors), 8.0),
        turn_rad=math.atan2(float(x[0, 1] - x[0, 0]) * -float(sin), float(cos) * abs(gsd / zoom)),
        origin_px=(margin, margin),
    )
    plan.height_m[plan.cover == Cover.GROUND] = 0.0
    _paint(plan, scene, district.roofs[i, j])
    # What stands on the tallest roof ends where the ground that was cut would be too narrow for it.
    highest = (margin - 0.5) / max(abs(scene.k[0]), abs(scene.k[1]), 1e-6)
    np.minimum(plan.height_m, np.float32(highest), out=plan.height_m)
    return plan


def _mirrored(position: Map, count: int) -> NDArray[np.int64]:
    """Row or column numbers that run to the edge, back, and so on."""
    index = np.floor(position).astype(np.int64) % (2 * count)
    return np.where(index < count, index, 2 * count - 1 - index)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...], count: int, spread: float) -> Map:
    """`count` colours of a palette, each changed a little."""
    chosen = np.array(colors, np.float32)[rng.integers(len(colors), size=count)]
    shift = rng.normal(0.0, spread, (count, 1)) + rng.normal(0.0, spread / 3, (count, 3))
    return np.clip(chosen + shift, 8, 252).astype(np.float32)


def _paint(plan: Plan, scene: SceneParameters, roofs: NDArray[np.int32]) -> None:
    """Ground, roofs with what lies and stands on them, trees and cars."""
    rng, style = scene.rng, scene.style
    shape, gsd = plan.cover.shape, scene.gsd_m
    area = shape[0] * shape[1] * gsd * gsd / 1e4
    ground = np.empty((*shape, 3), np.float32)
    ground[:] = style.asphalt
    palette = (style.asphalt, style.asphalt, style.grass, style.pavement, style.soil)
    for _ in range(int(rng.poisson(14 * area))):
        _rectangle(ground, plan, rng, gsd, (5.0, 60.0), _pick(rng, palette, 1, 10.0)[0])
    for _ in range(int(rng.poisson(25 * style.clutter * area))):
        _rectangle(ground, plan, rng, gsd, (1.0, 14.0), _pick(rng, palette, 1, 16.0)[0])
    for _ in range(int(rng.poisson(4 * area))):
        _bays(ground, plan, rng, gsd)
    crowns = cv2.dilate((plan.cover == Cover.TREE).astype(np.uint8), np.ones((9, 9), np.uint8))
    ground[(crowns > 0) & (mottle(rng, View((0, 0), gsd, (0, 0), shape)) > -0.4)] = style.grass
    colors = _pick(rng, style.flat_roofs, int(roofs.max()) + 1, 9.0)[roofs]
    own = _pick(rng, style.flat_roofs, len(plan.wall), 9.0)[plan.buildings]
    patches = np.where((roofs % 3 > 0)[..., None], own, colors)  # most parts share the building's
    for _ in range(int(rng.poisson(30 * style.clutter * area))):
        _rectangle(patches, plan, rng, gsd, (1.5, 22.0), _pick(rng, style.flat_roofs, 1, 9.0)[0])
    plan.color[:] = ground
    is_roof = plan.cover == Cover.ROOF
    plan.color[is_roof] = patches[is_roof]
    plan.color[plan.cover == Cover.TREE] = style.crown
    paints = _pick(rng, CAR_PAINTS, 4096, 10.0)
    rows, columns = np.nonzero(plan.cover == Cover.CAR)
    cell = (rows * gsd / 4.0).astype(np.int64) * 61 + (columns * gsd / 4.0).astype(np.int64)
    plan.color[rows, columns] = paints[cell % len(paints)]
    extra = np.zeros(shape, np.float32)
    steel = np.zeros((*shape, 3), np.float32)
    for _ in range(int(rng.poisson(45 * style.clutter * area))):
        tall, grey = float(rng.uniform(0.4, 3.0)), float(rng.uniform(90, 235))
        box = _rectangle(steel, plan, rng, gsd, (1.0, 6.0), (grey, grey, grey))
        cv2.fillConvexPoly(extra, box, tall)
    put = is_roof & (extra > 0)
    plan.height_m[put] += extra[put]
    plan.color[put] = steel[put]


def _corners(
    plan: Plan, rng: np.random.Generator, sides_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A rectangle along the district's axes somewhere on the plan."""
    turn = plan.turn_rad + (math.pi / 2 if rng.random() < 0.5 else 0.0)
    axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    centre = rng.uniform(0, 1, 2) * np.array(plan.cover.shape[::-1])
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides_px / 2 @ axes + centre


def _rectangle(
    image: Map,
    plan: Plan,
    rng: np.random.Generator,
    gsd_m: float,
    side_m: tuple[float, float],
    color: Color | Map,
) -> NDArray[np.int32]:
    """Fills a rectangle; returns its corners."""
    low, high = np.log(side_m)
    corners = np.rint(_corners(plan, rng, np.exp(rng.uniform(low, high, 2)) / gsd_m))
    cv2.fillConvexPoly(image, points := corners.astype(np.int32), tuple(float(c) for c in color))
    return points


def _bays(ground: Map, plan: Plan, rng: np.random.Generator, gsd_m: float) -> None:
    """A row of parking bays: asphalt, lines, and flat shapes of cars in part of them."""
    length, deep = float(rng.uniform(15.0, 60.0)), 5.2
    a, b, _, d = _corners(plan, rng, np.array([length, deep]) / gsd_m)
    paints = _pick(rng, CAR_PAINTS, 64, 10.0)
    for i in range(count := int(length / 2.7)):
        start, end = a + (b - a) * (i / count), a + (d - a) + (b - a) * (i / count)
        ends = [tuple(int(v) for v in np.rint(p * 16)) for p in (start, end)]
        cv2.line(ground, ends[0], ends[1], (196.0, 194.0, 188.0), 1, cv2.LINE_AA, 4)
        if rng.random() < 0.6:
            inner = [(u, v) for u, v in ((0.15, 0.08), (0.85, 0.08), (0.85, 0.92), (0.15, 0.92))]
            car = [start + (b - a) * (u / count) + (d - a) * v for u, v in inner]
            paint = tuple(float(c) for c in paints[int(rng.integers(64))])
            cv2.fillConvexPoly(ground, np.rint(car).astype(np.int32), paint)


def _light(scene: SceneParameters, plan: Plan, agl: Map, x: Map, y: Map) -> Map:
    """Linear radiance of the image."""
    look, gsd = scene.look, scene.gsd_m
    view = View(scene.k, gsd, (0, 0), agl.shape)
    noise = mottle(scene.rng, view) * np.float32(look.texture)
    top = sample(plan.height_m, x, y)
    wall = (agl < top - 0.3) & (agl > 0.0)
    cover = sample(plan.cover, x, y)
    albedo = (sample(plan.color, x, y) / 255.0) ** 2
    wall &= cover == Cover.ROOF
    normal = _slopes(plan, scene)
    nx, ny = (sample(part, x, y) for part in normal[:2])
    wx, wy = (sample(part, x, y) for part in normal[2:])
    facade = _facades(scene, plan, agl, (x, y), (wx, wy), top)
    albedo[wall] = facade[wall]
    strength = np.select([wall, cover == Cover.TREE], [0.05, 0.3], 0.07).astype(np.float32)
    albedo *= np.clip(1.0 + strength * noise, 0.35, 1.9)[..., None]
    sun = sun_vector(scene)
    flat = (nx * sun[0] + ny * sun[1] + sun[2]) / np.sqrt(nx * nx + ny * ny + 1) / sun[2]
    upright = (wx * sun[0] + wy * sun[1]) / sun[2]
    flat = np.where(cover == Cover.GROUND, ground_light(scene, view), flat)
    facing = np.clip(np.where(wall, upright, flat), 0.0, look.steepest).astype(np.float32)
    out = np.float32(1.2 / max(math.hypot(*scene.k), 1e-6))
    over = _shadows(scene, plan)
    front = np.maximum(over, plan.height_m)
    before = sample(front, x + out * np.float32(scene.k[0]), y + out * np.float32(scene.k[1]))
    shade = np.where(wall, before, sample(over, x, y))
    light = facing * (shade <= agl + _BIAS_M)
    ambient = openness(agl, view) * np.where(wall, 0.55, 1.0).astype(np.float32)
    bounce = look.bounce * wall.astype(np.float32)
    for c in range(3):
        albedo[..., c] *= (light + bounce) * look.sun[c] + ambient * look.sky[c]
    return albedo.astype(np.float32)


def _shadows(scene: SceneParameters, plan: Plan) -> Map:
    """Height above ground up to which the air is in shadow; the ground may rise and fall."""
    if scene.relief.flat:
        return shadow_heights(plan.height_m, scene.sun_k, 1.5)
    (rows, columns), (x, y), gsd = plan.height_m.shape, plan.origin_px, np.float32(scene.gsd_m)
    along = (np.arange(columns, dtype=np.float32) - x) * gsd
    terrain = scene.relief.height_m(along, (np.arange(rows, dtype=np.float32) - y)[:, None] * gsd)
    terrain -= terrain.min()
    return shadow_heights(plan.height_m + terrain, scene.sun_k, 1.5) - terrain


def _slopes(plan: Plan, scene: SceneParameters) -> tuple[Map, Map, Map, Map]:
    """Normals: (x, y) over z of tops within their surface, and unit (x, y) of walls."""
    parts: list[Map] = []
    for order in ((1, 0), (0, 1)):
        slope = cv2.Sobel(plan.height_m, cv2.CV_32F, *order, scale=1 / (8 * scene.gsd_m))
        inner = (np.abs(slope) < 1.5) | (plan.cover == Cover.TREE)
        count = cv2.blur(inner.astype(np.float32), (3, 3)) + 1e-3
        parts.append(-cv2.blur(np.where(inner, slope, 0), (3, 3)) / count)
    wide = cv2.GaussianBlur(plan.height_m, (0, 0), max(1.2 / scene.gsd_m, 1.0))
    walls = [-cv2.Sobel(wide, cv2.CV_32F, *order) for order in ((1, 0), (0, 1))]
    length = np.maximum(np.hypot(*walls), 1e-6)
    parts += [np.asarray(wall / length, np.float32) for wall in walls]
    return parts[0], parts[1], parts[2], parts[3]


def _facades(
    scene: SceneParameters,
    plan: Plan,
    agl: Map,
    place: tuple[Map, Map],
    normal: tuple[Map, Map],
    top: Map,
) -> Map:
    """Linear colours of walls with windows, for every pixel."""
    rng, gsd = scene.rng, scene.gsd_m
    number = sample(plan.buildings.astype(np.float32), *place).astype(np.int32)
    count = len(plan.wall)
    color = brighter_walls((plan.wall / 255.0) ** 2, scene.look)[number]
    glass = ((rng.uniform(25, 110, (count, 1)) + rng.uniform(0, 22, (count, 3))) / 255.0) ** 2
    bay, floor = rng.uniform(2.6, 6.0, count), rng.uniform(3.0, 4.4, count)
    wide = rng.choice([0.3, 0.5, 0.7, 0.97, 0.0], count)
    high = rng.uniform(0.3, 0.75, count)
    axis = np.array([math.cos(plan.turn_rad), math.sin(plan.turn_rad)])
    along = np.abs(normal[0] * axis[0] + normal[1] * axis[1]) < 0.7
    u = np.where(along, place[0] * axis[0] + place[1] * axis[1], 0.0)
    u += np.where(along, 0.0, place[1] * axis[0] - place[0] * axis[1])
    k = max(scene.scale_px_per_m, 1e-3)
    share = pulse(u * gsd / bay[number], wide[number], 1.4 * gsd / bay[number])
    share = share * pulse(agl / floor[number], high[number], 1.0 / k / floor[number])
    share = np.where(agl > top - 1.0, 0.0, share) * scene.look.windows
    return np.asarray(color + share[..., None] * (glass[number] - color), np.float32)
