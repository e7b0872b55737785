"""Colours of the seen surfaces: materials, windows, sun and sky light, shadows.

In: the buffers of camera and sun, the mesh and the painted ground. Out: linear radiance per pixel.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.sample_city.view.raster import Buffers, View, newell, rasterize
from geopose.sample_city.world.cities import SceneParameters
from geopose.sample_city.world.look import WHITEST, Look
from geopose.sample_city.world.mesh import Kind, Mesh

_SHADOW_BIAS_M = 0.4  # about one pixel of the steepest lit surface
_LINEAR = ((np.arange(256) / 255.0) ** 2).astype(np.float32)  # display value -> linear
_AMBIENT_REACH_M = 14.0


@dataclass(frozen=True)
class Surface:
    """Flat indices of the pixels that show solids, and where these are.

    `x_px`, `y_px` are the ground pixels under what is seen; all arrays are (P,).
    """

    pixel: NDArray[np.int64]
    ids: NDArray[np.int32]
    z_m: NDArray[np.float32]
    x_px: NDArray[np.float32]
    y_px: NDArray[np.float32]


def shade(
    scene: SceneParameters,
    mesh: Mesh,
    view: View,
    seen: Buffers,
    ground: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> NDArray[np.float32]:
    """Linear radiance (H x W x 3, about 0..1) of a rasterised scene."""
    width = view.shape[1]
    pixel = np.flatnonzero(seen.ids >= 0)
    z = seen.z_m.reshape(-1)[pixel]
    row, column = np.divmod(pixel, width)
    surface = Surface(
        pixel=pixel,
        ids=seen.ids.reshape(-1)[pixel],
        z_m=z,
        x_px=(column + z * np.float32(view.k[0])).astype(np.float32),
        y_px=(row + z * np.float32(view.k[1])).astype(np.float32),
    )
    look = scene.look
    noise = mottle(scene.rng, view) * np.float32(look.texture)
    image = _ground_albedo(ground, noise)
    solids = _solid_albedo(mesh, view, surface, noise, look)
    lit = sun_mask(scene, mesh, view, seen)
    facing, sky, side = _facing(scene, mesh, view, surface)
    light = ground_light(scene, view)
    light.reshape(-1)[pixel] = facing
    light *= lit
    ambient = openness(seen.z_m, view)
    ambient.reshape(-1)[pixel] *= sky
    if look.bounce > 0.0:
        # As if of the sun's colour: what is lit around is grey on the whole.
        light.reshape(-1)[pixel] += np.float32(look.bounce) * side
    image.reshape(-1, 3)[pixel] = solids
    sun, sky_light = (np.array(color, np.float32) for color in (look.sun, look.sky))
    for channel in range(3):
        image[..., channel] *= light * sun[channel] + ambient * sky_light[channel]
    return image


def mottle(rng: np.random.Generator, view: View) -> NDArray[np.float32]:
    """Mottle of unit variance: fine grain, patches of metres and of tens of metres."""
    height, width = view.shape
    total = rng.standard_normal((height, width), np.float32) * 0.6
    for size_m, weight in ((2.5, 0.6), (18.0, 0.55)):
        step = max(size_m / view.gsd_m, 1.5)
        coarse = (max(int(height / step), 2), max(int(width / step), 2))
        patch = rng.standard_normal(coarse, np.float32)
        total += weight * cv2.resize(patch, (width, height), interpolation=cv2.INTER_CUBIC)
    return total


def _ground_albedo(
    ground: tuple[NDArray[np.uint8], NDArray[np.uint8]], noise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Painted ground with mottle: strong on vegetation, weak on paving, hardly any on water."""
    painted, water = ground
    green = cv2.subtract(painted[..., 1], painted[..., 0])
    strength = 0.06 + 0.006 * np.minimum(green, 20).astype(np.float32)
    strength[water > 0] = 0.015
    linear = _LINEAR[painted]
    linear *= np.clip(1.0 + strength * noise, 0.4, 1.8)[..., None]
    return linear


def _solid_albedo(
    mesh: Mesh, view: View, surface: Surface, noise: NDArray[np.float32], look: Look
) -> NDArray[np.float32]:
    """Colour of every solid pixel (P, 3), linear."""
    table = np.concatenate([mesh.color, mesh.ellipsoid_color]) / 255.0
    color = (table * table)[surface.ids].astype(np.float32)
    strength = np.full(len(table), 0.30, np.float32)
    by_kind = np.array([0.03, 0.04, 0.065, 0.09], np.float32)
    strength[: mesh.face_count] = by_kind[mesh.kind]
    height, width = view.shape
    grain = noise.reshape(-1)[
        (surface.y_px.astype(np.int64) % height) * width + surface.x_px.astype(np.int64) % width
    ]
    color *= np.clip(1.0 + strength[surface.ids] * grain, 0.35, 1.9)[:, None]
    is_wall = np.zeros(len(table), bool)
    is_wall[: mesh.face_count] = mesh.kind == Kind.WALL
    wall = np.flatnonzero(is_wall[surface.ids])
    if len(wall):
        color[wall] = brighter_walls(color[wall], look)
        _windows(mesh, view, surface, wall, color, look.windows)
    return color


def brighter_walls(color: NDArray[np.floating], look: Look) -> NDArray[np.floating]:
    """Linear colours (P, 3) of walls under a look: all bands by one factor, up to `WHITEST`."""
    if look.walls == 1.0:
        return color
    brightest = np.maximum(color.max(axis=1, keepdims=True), 1e-6)
    return color * np.minimum(look.walls, np.maximum(WHITEST / brightest, 1.0))


def _windows(
    mesh: Mesh,
    view: View,
    surface: Surface,
    wall: NDArray[np.int64],
    color: NDArray[np.float32],
    contrast: float,
) -> None:
    """Blends windows into the wall pixels of `color`, filtered to the pixel's footprint."""
    used, face = np.unique(surface.ids[wall], return_inverse=True)
    verts = mesh.verts[used]
    base = verts[:, 1, :2] - verts[:, 0, :2]
    length = np.maximum(np.hypot(base[:, 0], base[:, 1]), 1e-3)
    along = base / length[:, None]
    style = mesh.facades[mesh.facade[used]]
    bays = np.maximum(np.round(length / style[:, 3]), 1.0)
    bay, floor = length / bays, style[:, 4]
    top = verts[:, :, 2].max(axis=1)
    grad_z = _slope(verts, view)
    lean = along @ np.asarray(view.k)
    grad_u = view.gsd_m * (along + lean[:, None] * grad_z)

    def table(values: NDArray) -> NDArray[np.float32]:
        return values.astype(np.float32)[face]

    x = surface.x_px[wall] * view.gsd_m - table(verts[:, 0, 0])
    y = surface.y_px[wall] * view.gsd_m - table(verts[:, 0, 1])
    z = surface.z_m[wall]
    u = (x * table(along[:, 0]) + y * table(along[:, 1])) / table(bay)
    v = z / table(floor)
    share = pulse(u, table(style[:, 5]), table(np.hypot(grad_u[:, 0], grad_u[:, 1]) / bay))
    share *= pulse(v, table(style[:, 6]), table(np.hypot(grad_z[:, 0], grad_z[:, 1]) / floor))
    share[z > table(top) - 0.7] = 0.0
    pane = (u.astype(np.int64) * 7919 + v.astype(np.int64) * 104729 + face * 1299709) % 251
    glass = (style[:, :3] / 255.0) ** 2
    glass_px = glass.astype(np.float32)[face] * (0.55 + pane / 251.0)[:, None].astype(np.float32)
    share *= np.float32(contrast)
    color[wall] += share[:, None] * (glass_px - color[wall])


def pulse(
    x: NDArray[np.floating], duty: NDArray[np.floating], footprint: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Mean over a footprint of a wave of period 1 that is 1 in the middle `duty` of each period."""

    def integral(t: NDArray[np.floating]) -> NDArray[np.floating]:
        whole = np.floor(t)
        return whole * duty + np.clip(t - whole - (1.0 - duty) / 2, 0.0, duty)

    footprint = np.maximum(footprint, np.float32(0.05))
    return (integral(x + footprint / 2) - integral(x - footprint / 2)) / footprint


def _slope(verts: NDArray[np.float64], view: View) -> NDArray[np.float64]:
    """Gradient of height in the view, metres per pixel (N, 2), of faces that are seen."""
    xy = view.project(verts)
    normal = newell(np.concatenate([xy, verts[..., 2:]], axis=-1))
    return -normal[:, :2] / np.maximum(normal[:, 2:], 1e-9)


def sun_vector(scene: SceneParameters) -> NDArray[np.float64]:
    """Unit vector towards the sun (X, Y, Z)."""
    level = math.cos(scene.sun_elevation_rad)
    azimuth = scene.sun_azimuth_rad
    return np.array(
        [level * math.sin(azimuth), level * math.cos(azimuth), math.sin(scene.sun_elevation_rad)]
    )


def sun_mask(scene: SceneParameters, mesh: Mesh, view: View, seen: Buffers) -> NDArray[np.float32]:
    """1 where no higher surface stands between sun and seen surface, else 0 (H x W)."""
    if not scene.relief.flat:
        return _sun_mask_on_relief(scene, mesh, view, seen)
    height, width = view.shape
    sun_k = scene.sun_k
    drift = np.array(view.k) - np.array(sun_k)  # sun pixel of (p, Z) is p + Z (k - sun_k)
    reach = drift * float(seen.z_m.max(initial=0.0))
    low = np.floor(np.minimum(reach, 0.0)).astype(int) - 1
    high = np.ceil(np.maximum(reach, 0.0)).astype(int) + 1
    shape = (height + int(high[1] - low[1]), width + int(high[0] - low[0]))
    sun = rasterize(mesh, View(sun_k, view.gsd_m, (int(low[0]), int(low[1])), shape))
    x = seen.z_m * np.float32(drift[0]) + np.arange(width, dtype=np.float32)
    y = seen.z_m * np.float32(drift[1]) + np.arange(height, dtype=np.float32)[:, None]
    x, y = np.rint(x - low[0]).astype(np.int32), np.rint(y - low[1]).astype(np.int32)
    index = y * shape[1] + x
    same = sun.ids.reshape(-1)[index] == seen.ids
    return (same | (sun.z_m.reshape(-1)[index] <= seen.z_m + _SHADOW_BIAS_M)).astype(np.float32)


def _sun_mask_on_relief(
    scene: SceneParameters, mesh: Mesh, view: View, seen: Buffers
) -> NDArray[np.float32]:
    """The same with everything lifted by the terrain under it, as the sun sees the world."""
    relief, gsd = scene.relief, np.float32(view.gsd_m)
    verts, bodies = mesh.verts.copy(), mesh.ellipsoids.copy()
    x = np.arange(view.shape[1], dtype=np.float32) + seen.z_m * np.float32(view.k[0])
    y = np.arange(view.shape[0], dtype=np.float32)[:, None] + seen.z_m * np.float32(view.k[1])
    terrain = relief.height_m(x * gsd, y * gsd)
    under = relief.height_m(verts[..., 0], verts[..., 1])
    under_trees = relief.height_m(bodies[:, 0], bodies[:, 1])
    parts = (terrain, under, under_trees)
    lowest = np.float32(min(float(part.min(initial=np.inf)) for part in parts))
    verts[..., 2] += under - lowest
    bodies[:, 2] += under_trees - lowest
    level = seen.z_m + (terrain - lowest)
    sun_k = scene.sun_k
    x -= level * np.float32(sun_k[0])
    y -= level * np.float32(sun_k[1])
    low = math.floor(float(x.min())) - 1, math.floor(float(y.min())) - 1
    shape = math.ceil(float(y.max())) + 2 - low[1], math.ceil(float(x.max())) + 2 - low[0]
    lifted = replace(mesh, verts=verts, ellipsoids=bodies)
    sun = rasterize(lifted, View(sun_k, view.gsd_m, low, shape))
    index = np.rint(y - low[1]).astype(np.int32) * shape[1] + np.rint(x - low[0]).astype(np.int32)
    level += np.float32(_SHADOW_BIAS_M + relief.bias_m)
    same = sun.ids.reshape(-1)[index] == seen.ids
    return (same | (sun.z_m.reshape(-1)[index] <= level)).astype(np.float32)


def ground_light(scene: SceneParameters, view: View) -> NDArray[np.float32]:
    """Sunlight on the bare ground of every pixel, relative to level ground."""
    if scene.relief.flat:
        return np.ones(view.shape, np.float32)
    x = (np.arange(view.shape[1], dtype=np.float32) + view.origin_px[0]) * np.float32(view.gsd_m)
    y = (np.arange(view.shape[0], dtype=np.float32) + view.origin_px[1]) * np.float32(view.gsd_m)
    along_x, along_y = scene.relief.slopes(x, y[:, None])
    sun = sun_vector(scene).astype(np.float32)
    toward = sun[2] - along_x * sun[0] - along_y * sun[1]
    toward /= np.sqrt(1.0 + along_x * along_x + along_y * along_y) * sun[2]
    return np.clip(toward, 0.0, np.float32(scene.look.steepest))


def _facing(
    scene: SceneParameters, mesh: Mesh, view: View, surface: Surface
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Sunlight relative to level ground, share of the sky, and of the ground, of solid pixels."""
    sun = sun_vector(scene)
    normal = newell(mesh.verts)
    # Newell normals of rings with positive area point up on roofs and outwards on walls
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    sunlit = np.zeros(mesh.face_count + len(mesh.ellipsoids), np.float32)
    sunlit[: mesh.face_count] = np.clip(normal @ sun / sun[2], 0.0, scene.look.steepest)
    sky = np.full(len(sunlit), 0.8, np.float32)
    sky[: mesh.face_count] = 0.55 + 0.45 * np.clip(normal[:, 2], 0.0, 1.0)
    side = np.full(len(sunlit), 0.4, np.float32)
    side[: mesh.face_count] = np.clip(1.0 - normal[:, 2], 0.0, 1.0)
    light = sunlit[surface.ids]
    crown = np.flatnonzero(surface.ids >= mesh.face_count)
    number = surface.ids[crown] - mesh.face_count
    body = mesh.ellipsoids.astype(np.float32)[number]
    nx = (surface.x_px[crown] * view.gsd_m - body[:, 0]) / body[:, 3] ** 2
    ny = (surface.y_px[crown] * view.gsd_m - body[:, 1]) / body[:, 3] ** 2
    nz = (surface.z_m[crown] - body[:, 2]) / body[:, 4] ** 2
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    toward = (nx * sun[0] + ny * sun[1] + nz * sun[2]) / (length * sun[2])
    light[crown] = np.clip(0.25 + 0.75 * toward, 0.0, 1.25)
    return light, sky[surface.ids], side[surface.ids]


def openness(z_m: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Share of the sky that is not hidden by higher surroundings (cheap estimate, 0.5..1)."""
    size = max(int(_AMBIENT_REACH_M / view.gsd_m) | 1, 3)
    above = cv2.blur(z_m, (size, size)) - z_m
    return 1.0 / (1.0 + 0.05 * np.clip(above, 0.0, 20.0))
