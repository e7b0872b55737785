"""Heights as an airborne lidar would have them: noise, ragged edges, gaps, another date.

In: the exact heights of a scene and what its pixels show. Out: heights with NaN where there are
none, and a report of what is wrong with them. Only heights get worse, images are made as ever, but
for a building that the lidar saw and that is gone from the image, or the other way round.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.sample_city.view.raster import Buffers, View, rasterize
from geopose.sample_city.view.shade import sun_mask
from geopose.sample_city.world.cities import SceneParameters
from geopose.sample_city.world.mesh import Mesh

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
_CELL_M = 0.5
_JUMP_M = 1.0  # neighbours further apart lie on both sides of an edge
_SLOW_M = 60.0
_CHANGED_M2 = (40.0, 4000.0)


@dataclass(frozen=True)
class Survey:
    """How well the heights of one scene were measured.

    Attributes:
        noise_m: deviation of single heights. slow_m: of an error that changes over tens of metres.
        crown_m: deviation in trees. through: share of returns from within a crown.
        ragged_px: deviation of where an edge is, at most one pixel off.
        holes: share of the pixels lost in small holes.
        off_nadir_rad, azimuth_rad: from where the lidar looked; what it did not see is unknown.
        shadows: whether only one strip was flown, so that its shadows stay.
        changed: `built`, `demolished` (after the lidar flew, before the image) or nothing.
        rng: for the rest.
    """

    noise_m: float
    slow_m: float
    crown_m: float
    through: float
    ragged_px: float
    holes: float
    off_nadir_rad: float
    azimuth_rad: float
    shadows: bool
    changed: str
    rng: np.random.Generator


@dataclass(frozen=True)
class Worlds:
    """The world of the image, that of the heights, and the building that is in one of them."""

    image: Mesh
    heights: Mesh
    change: dict[str, object] | None


def stream(city: str, index: int, seed: int) -> np.random.Generator:
    """Random stream of a scene's heights; the scene's own is not touched."""
    key = int.from_bytes(f"lidar {city}".encode())
    return np.random.default_rng(np.random.SeedSequence([seed, key, index]))


def drawn_survey(city: str, index: int, seed: int) -> Survey:
    """The survey of a scene; the same arguments give the same."""
    rng = stream(city, index, seed)
    rng.random()  # whether a data set has it: see `chosen`
    chance = float(rng.random())
    return Survey(
        noise_m=float(rng.uniform(0.03, 0.2)),
        slow_m=float(rng.uniform(0.0, 0.12)),
        crown_m=float(rng.uniform(0.2, 0.8)),
        through=float(rng.uniform(0.02, 0.2)),
        ragged_px=float(rng.uniform(0.3, 0.7)),
        holes=float(10 ** rng.uniform(-3.5, -2.0)),
        off_nadir_rad=math.radians(rng.uniform(4.0, 18.0)),
        azimuth_rad=float(rng.uniform(0, 2 * math.pi)),
        shadows=bool(rng.random() < 0.5),
        changed="built" if chance < 0.1 else "demolished" if chance < 0.2 else "",
        rng=rng,
    )


def chosen(city: str, index: int, seed: int, share: float) -> bool:
    """Whether a scene is among the share of scenes that have such heights."""
    return bool(stream(city, index, seed).random() < share)


def two_dates(survey: Survey, mesh: Mesh, extent_m: tuple[float, float]) -> Worlds:
    """Takes one building out of the image's world or out of the heights', if the survey says so."""
    gone = _building(survey.rng, mesh, extent_m) if survey.changed else None
    if gone is None:
        return Worlds(mesh, mesh, None)
    faces, middle = gone
    keep = ~faces
    rest = replace(
        mesh,
        verts=mesh.verts[keep],
        kind=mesh.kind[keep],
        color=mesh.color[keep],
        facade=mesh.facade[keep],
    )
    top = float(mesh.verts[faces][..., 2].max())
    shown = survey.changed == "built"
    change: dict[str, object] = {
        "in": "image only" if shown else "heights only",
        "ground_m": [round(v, 1) for v in middle],
        "height_m": round(top, 1),
    }
    return Worlds(mesh, rest, change) if shown else Worlds(rest, mesh, change)


def _building(
    rng: np.random.Generator, mesh: Mesh, extent_m: tuple[float, float]
) -> tuple[Mask, tuple[float, float]] | None:
    """(its faces and all within its outline, its middle) of a building of the image; or None."""
    labels = _connected(mesh)
    tall = mesh.verts[..., 2].max(axis=1) > 4.0
    middle = mesh.verts[..., :2].mean(axis=1)
    inside = (middle > 0).all(axis=1) & (middle < np.array(extent_m)).all(axis=1)
    candidates = np.unique(labels[tall & inside])
    for label in rng.permutation(candidates)[:40]:
        points = mesh.verts[labels == label][..., :2].reshape(-1, 2).astype(np.float32)
        hull = cv2.convexHull(points).reshape(-1, 2)
        if _CHANGED_M2[0] <= cv2.contourArea(hull) <= _CHANGED_M2[1]:
            centre = hull.mean(axis=0)
            outline = centre + (hull - centre) * 1.02
            return _within(middle, outline), (float(centre[0]), float(centre[1]))
    return None


def _connected(mesh: Mesh) -> NDArray[np.int64]:
    """Number of the body of every face: faces that share a corner on the ground plan."""
    places = np.rint(mesh.verts[..., :2] * 20.0).astype(np.int64)
    keys = (places[..., 0] << 32) + places[..., 1]
    corner = np.unique(keys.reshape(-1), return_inverse=True)[1].reshape(keys.shape)
    labels = np.arange(len(keys))
    while True:
        lowest = np.full(int(corner.max(initial=0)) + 1, len(keys))
        np.minimum.at(lowest, corner, np.broadcast_to(labels[:, None], corner.shape))
        following = lowest[corner].min(axis=1, initial=len(keys))
        if (following == labels).all():
            return labels
        labels = following


def _within(points: NDArray, hull: NDArray) -> Mask:
    """Which points lie inside a convex outline, whichever way round it runs."""
    steps = np.roll(hull, -1, axis=0) - hull
    away = points[:, None] - hull[None]
    sides = steps[None, :, 0] * away[..., 1] - steps[None, :, 1] * away[..., 0]
    return np.asarray((sides >= 0).all(axis=1) | (sides <= 0).all(axis=1))


def survey_mesh(
    survey: Survey, scene: SceneParameters, worlds: Worlds, view: View, water: Mask, exact: Map
) -> tuple[Map, dict[str, object]]:
    """Heights of a synthetic city as measured, and their report.

    Args:
        survey: of `drawn_survey`.
        scene: as drawn.
        worlds: of `two_dates`.
        view: the image's.
        water: H x W, where the ground is water.
        exact: heights of what the image shows.
    """
    seen = rasterize(worlds.heights, view)
    hidden = np.zeros(view.shape, bool)
    if survey.shadows:
        hidden = _hidden(survey, scene, worlds.heights, view, seen)
    crowns = seen.ids >= worlds.heights.face_count
    measured, report = measure(survey, seen.z_m, view, crowns, water & (seen.z_m == 0), hidden)
    return measured, report | _difference(measured, exact, worlds.change)


def _hidden(survey: Survey, scene: SceneParameters, mesh: Mesh, view: View, seen: Buffers) -> Mask:
    """What the lidar did not see: a light where it flew does not reach it."""
    lamp = replace(
        scene,
        sun_elevation_rad=math.pi / 2 - survey.off_nadir_rad,
        sun_azimuth_rad=survey.azimuth_rad,
    )
    dark = (sun_mask(lamp, mesh, view, seen) == 0).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0)


def measure(
    survey: Survey, z_m: Map, view: View, crowns: Mask, water: Mask, hidden: Mask
) -> tuple[Map, dict[str, object]]:
    """Heights with errors, NaN = unknown, and what was done to them.

    Args:
        survey: of `drawn_survey`.
        z_m: exact heights of the world that the lidar saw, as the image's camera sees it.
        view: the image's.
        crowns: where trees are seen. water: where pulses are lost. hidden: from the lidar.
    """
    rng, shape = survey.rng, view.shape
    moved = _ragged(survey, z_m)
    grain = _on_the_ground(rng, view, moved, _CELL_M)
    height = moved + grain * np.where(
        crowns, np.float32(survey.crown_m), np.float32(survey.noise_m)
    )
    height += _on_the_ground(rng, view, np.zeros_like(moved), _SLOW_M) * np.float32(survey.slow_m)
    deep = crowns & (rng.random(shape, np.float32) < survey.through)
    height[deep] *= rng.uniform(0.2, 0.9, int(deep.sum())).astype(np.float32)
    height = np.maximum(height, 0.0).astype(np.float32)
    holes = _holes(rng, shape, survey.holes)
    lost = water & (rng.random(shape, np.float32) < 0.97)
    height[holes | lost | hidden] = np.nan
    report: dict[str, object] = {
        "noise_m": round(survey.noise_m, 3),
        "slow_error_m": round(survey.slow_m, 3),
        "crown_noise_m": round(survey.crown_m, 3),
        "returns_from_within_crowns": round(survey.through, 3),
        "edges_off_by_px": 1,
        "unknown": {
            "water": round(float(lost.mean()), 5),
            "not seen by the lidar": round(float(hidden.mean()), 5),
            "holes": round(float(holes.mean()), 5),
        },
    }
    return height, report


def _ragged(survey: Survey, z_m: Map) -> Map:
    """Pixels beside an edge take the height of a neighbour now and then."""
    kernel = np.ones((3, 3), np.uint8)
    edge = np.flatnonzero(cv2.morphologyEx(z_m, cv2.MORPH_GRADIENT, kernel) > _JUMP_M)
    row, column = np.divmod(edge, z_m.shape[1])
    jitter = np.rint(survey.rng.normal(0.0, survey.ragged_px, (2, len(edge))))
    down, right = np.clip(jitter, -1, 1).astype(np.int64)
    row = np.clip(row + down, 0, z_m.shape[0] - 1)
    column = np.clip(column + right, 0, z_m.shape[1] - 1)
    moved = z_m.copy()
    moved.reshape(-1)[edge] = z_m[row, column]
    return moved


def _on_the_ground(rng: np.random.Generator, view: View, z_m: Map, cell_m: float) -> Map:
    """Noise of unit deviation that lies on the ground: equal in all pixels over one cell."""
    height, width = view.shape
    reach = float(z_m.max(initial=0.0)) + 1.0
    step = max(cell_m / view.gsd_m, 1.0)
    margin = [math.ceil(abs(k) * reach) + 2 for k in view.k]
    shape = tuple(int((n + 2 * m) / step) + 3 for n, m in ((height, margin[1]), (width, margin[0])))
    field = rng.standard_normal(shape, np.float32)
    x = np.arange(width, dtype=np.float32) + z_m * np.float32(view.k[0])
    y = np.arange(height, dtype=np.float32)[:, None] + z_m * np.float32(view.k[1])
    x, y = (x + margin[0]) / np.float32(step), (y + margin[1]) / np.float32(step)
    smooth = cv2.INTER_CUBIC if cell_m > 2.0 else cv2.INTER_NEAREST
    return np.asarray(cv2.remap(field, x, y, smooth, borderMode=cv2.BORDER_REPLICATE))


def _holes(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Mask:
    """Small holes of one to a dozen pixels."""
    seeds = (rng.random(shape, np.float32) < share / 5.0).astype(np.uint8)
    grown = cv2.dilate(seeds, np.ones((3, 3), np.uint8)) > 0
    return (seeds > 0) | (grown & (rng.random(shape, np.float32) < 0.5))


def _difference(measured: Map, exact: Map, change: dict[str, object] | None) -> dict[str, object]:
    """How far measured heights are from those of what the image shows."""
    error = np.abs(measured - exact)
    known = error[np.isfinite(error)]
    facts: dict[str, object] = {
        "median_error_m": round(float(np.median(known)), 3) if len(known) else None,
        "errors_above_1_m": round(float((known > 1.0).mean()), 5) if len(known) else None,
    }
    return facts | {"buildings_of_one_date": [change] if change else []}


def survey_columns(
    survey: Survey, view: View, exact: Map, crowns: Mask
) -> tuple[Map, dict[str, object]]:
    """The same for scenes of a real surface model, whose heights are of one date."""
    none = np.zeros(view.shape, bool)
    measured, report = measure(survey, exact, view, crowns, none, none)
    return measured, report | _difference(measured, exact, None)
