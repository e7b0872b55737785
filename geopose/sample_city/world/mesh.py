"""Solids of the sample city as convex planar faces and ellipsoids, in metres.

In: footprints and heights. Out: a `Mesh` of arrays for the rasteriser and the shader.
World axes follow the image: X right, Y down, Z up. A ring is a list of (x, y) corners with
positive signed area in these axes; the faces built here then have positive signed area in every
view that sees their outer side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
Ring = Sequence[Point]
Color = tuple[float, float, float]

MAX_VERTS = 5


class Kind(IntEnum):
    """What a face is made of; chooses its shading."""

    PLAIN = 0
    WALL = 1
    FLAT_ROOF = 2
    PITCHED_ROOF = 3


@dataclass(frozen=True)
class Facade:
    """How the walls of one building look; lengths in metres, shares in 0..1."""

    window: Color = (60.0, 70.0, 85.0)
    bay_m: float = 3.0
    floor_m: float = 3.2
    window_width: float = 0.5
    window_height: float = 0.55


@dataclass(frozen=True)
class Mesh:
    """Arrays of a finished world.

    Attributes:
        verts: (N, MAX_VERTS, 3) metres; shorter faces repeat their last corner.
        kind: (N,) int8 `Kind`.
        color: (N, 3) float32, 0..255 as displayed.
        facade: (N,) int32, row of `facades` (walls only).
        facades: (M, 7) float32: window colour (3), bay_m, floor_m, window width and height shares.
        ellipsoids: (T, 5) metres: centre x, y, z, horizontal radius, vertical radius.
        ellipsoid_color: (T, 3) float32, 0..255.
    """

    verts: NDArray[np.float64]
    kind: NDArray[np.int8]
    color: NDArray[np.float32]
    facade: NDArray[np.int32]
    facades: NDArray[np.float32]
    ellipsoids: NDArray[np.float64]
    ellipsoid_color: NDArray[np.float32]

    @property
    def face_count(self) -> int:
        """Number of planar faces; ids from here on are ellipsoids."""
        return len(self.verts)


@dataclass
class MeshBuilder:
    """Collects faces and ellipsoids; `build` freezes them into arrays."""

    _verts: list[list[tuple[float, float, float]]] = field(default_factory=list)
    _kind: list[int] = field(default_factory=list)
    _color: list[Color] = field(default_factory=list)
    _facade: list[int] = field(default_factory=list)
    _facades: list[Facade] = field(default_factory=lambda: [Facade()])
    _ellipsoids: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    _ellipsoid_color: list[Color] = field(default_factory=list)

    def facade(self, facade: Facade) -> int:
        """Registers a facade and returns its number for `walls`."""
        self._facades.append(facade)
        return len(self._facades) - 1

    def face(
        self,
        corners: Sequence[tuple[float, float, float]],
        kind: Kind,
        color: Color,
        facade: int = 0,
    ) -> None:
        """Adds one convex planar face of 3 to MAX_VERTS corners."""
        corners = list(corners)
        self._verts.append(corners + [corners[-1]] * (MAX_VERTS - len(corners)))
        self._kind.append(int(kind))
        self._color.append(color)
        self._facade.append(facade)

    def ellipsoid(self, x: float, y: float, z: float, r: float, rz: float, color: Color) -> None:
        """Adds a crown: centre, horizontal and vertical radius in metres."""
        self._ellipsoids.append((x, y, z, r, rz))
        self._ellipsoid_color.append(color)

    def build(self) -> Mesh:
        """Freezes everything collected so far."""
        return Mesh(
            verts=np.array(self._verts, np.float64).reshape(-1, MAX_VERTS, 3),
            kind=np.array(self._kind, np.int8),
            color=np.array(self._color, np.float32).reshape(-1, 3),
            facade=np.array(self._facade, np.int32),
            facades=np.array(
                [
                    (*f.window, f.bay_m, f.floor_m, f.window_width, f.window_height)
                    for f in self._facades
                ],
                np.float32,
            ),
            ellipsoids=np.array(self._ellipsoids, np.float64).reshape(-1, 5),
            ellipsoid_color=np.array(self._ellipsoid_color, np.float32).reshape(-1, 3),
        )


def walls(
    mesh: MeshBuilder,
    ring: Ring,
    z0: float,
    tops: float | Sequence[float],
    color: Color,
    facade: int = 0,
    kind: Kind = Kind.WALL,
) -> None:
    """Vertical walls around a ring from z0 to the given height (one, or one per corner)."""
    heights = [tops] * len(ring) if isinstance(tops, int | float) else list(tops)
    for i, (x0, y0) in enumerate(ring):
        j = (i + 1) % len(ring)
        x1, y1 = ring[j]
        mesh.face(
            [(x0, y0, z0), (x1, y1, z0), (x1, y1, heights[j]), (x0, y0, heights[i])],
            kind,
            color,
            facade,
        )


def cap(mesh: MeshBuilder, ring: Ring, z: float, color: Color, kind: Kind) -> None:
    """Horizontal top of a convex ring; more corners than a face holds become a fan."""
    points = [(x, y, z) for x, y in ring]
    for i in range(1, len(points) - 1, MAX_VERTS - 2):
        mesh.face([points[0], *points[i : i + MAX_VERTS - 1]], kind, color)


def prism(
    mesh: MeshBuilder, ring: Ring, z0: float, z1: float, color: Color, top: Color | None = None
) -> None:
    """Plain solid without windows: equipment, containers, cars, tanks."""
    walls(mesh, ring, z0, z1, color, kind=Kind.PLAIN)
    cap(mesh, ring, z1, top or color, Kind.PLAIN)


def flat_building(
    mesh: MeshBuilder,
    ring: Ring,
    z0: float,
    z1: float,
    wall: Color,
    roof: Color,
    facade: int,
    parapet_m: float = 0.0,
    rim: Color | None = None,
) -> None:
    """Convex footprint with a flat roof, optionally sunk behind a parapet of real thickness."""
    walls(mesh, ring, z0, z1, wall, facade)
    if parapet_m <= 0.0:
        cap(mesh, ring, z1, roof, Kind.FLAT_ROOF)
        return
    inner = inset(ring, 0.5)
    rim = rim or wall
    for i in range(len(ring)):
        j = (i + 1) % len(ring)
        (a, b), (c, d) = (ring[i], ring[j]), (inner[i], inner[j])
        mesh.face([(*a, z1), (*b, z1), (*d, z1), (*c, z1)], Kind.PLAIN, rim)
        mesh.face([(*d, z1 - parapet_m), (*c, z1 - parapet_m), (*c, z1), (*d, z1)], Kind.PLAIN, rim)
    cap(mesh, inner, z1 - parapet_m, roof, Kind.FLAT_ROOF)


def gable_building(
    mesh: MeshBuilder,
    ring: Ring,
    z0: float,
    eave: float,
    ridge: float,
    wall: Color,
    roof: Color,
    facade: int,
    hip: float = 0.0,
) -> None:
    """Rectangle with its ridge along the first edge; `hip` metres cut the ridge at both ends."""
    p0, p1, p2, p3 = ring
    ux, uy = _unit(p0, p1)
    m0 = ((p3[0] + p0[0]) / 2 + ux * hip, (p3[1] + p0[1]) / 2 + uy * hip, ridge)
    m1 = ((p1[0] + p2[0]) / 2 - ux * hip, (p1[1] + p2[1]) / 2 - uy * hip, ridge)
    e0, e1, e2, e3 = ((*p, eave) for p in ring)
    mesh.face([e0, e1, m1, m0], Kind.PITCHED_ROOF, roof)
    mesh.face([e2, e3, m0, m1], Kind.PITCHED_ROOF, roof)
    if hip > 0:
        walls(mesh, ring, z0, eave, wall, facade)
        mesh.face([e1, e2, m1], Kind.PITCHED_ROOF, roof)
        mesh.face([e3, e0, m0], Kind.PITCHED_ROOF, roof)
        return
    mesh.face([(*p0, z0), (*p1, z0), e1, e0], Kind.WALL, wall, facade)
    mesh.face([(*p1, z0), (*p2, z0), e2, m1, e1], Kind.WALL, wall, facade)
    mesh.face([(*p2, z0), (*p3, z0), e3, e2], Kind.WALL, wall, facade)
    mesh.face([(*p3, z0), (*p0, z0), e0, m0, e3], Kind.WALL, wall, facade)


def shed_building(
    mesh: MeshBuilder,
    ring: Ring,
    z0: float,
    low: float,
    high: float,
    wall: Color,
    roof: Color,
    facade: int,
) -> None:
    """Rectangle under one slope that rises from its first edge to the opposite one."""
    tops = [low, low, high, high]
    walls(mesh, ring, z0, tops, wall, facade)
    mesh.face([(*p, z) for p, z in zip(ring, tops, strict=True)], Kind.PITCHED_ROOF, roof)


def pyramid(mesh: MeshBuilder, ring: Ring, z0: float, apex: float, color: Color) -> None:
    """Sloped faces from a ring at z0 to one apex over its centre."""
    cx = sum(p[0] for p in ring) / len(ring)
    cy = sum(p[1] for p in ring) / len(ring)
    for i, p in enumerate(ring):
        q = ring[(i + 1) % len(ring)]
        mesh.face([(*p, z0), (*q, z0), (cx, cy, apex)], Kind.PITCHED_ROOF, color)


def regular_ring(cx: float, cy: float, radius: float, corners: int, turn_rad: float) -> list[Point]:
    """Regular polygon around a centre."""
    steps = [turn_rad + 2 * math.pi * i / corners for i in range(corners)]
    return [(cx + radius * math.cos(t), cy + radius * math.sin(t)) for t in steps]


def inset(ring: Ring, distance: float) -> list[Point]:
    """Convex ring moved inwards by a distance (every edge parallel to itself)."""
    moved = []
    for i, corner in enumerate(ring):
        ax, ay = _unit(ring[i - 1], corner)
        bx, by = _unit(corner, ring[(i + 1) % len(ring)])
        # inward normals are (-y, x); the corner moves along their sum
        nx, ny = -ay - by, ax + bx
        length = distance / (1.0 + ax * bx + ay * by)
        moved.append((corner[0] + nx * length, corner[1] + ny * length))
    return moved


def _unit(a: Point, b: Point) -> Point:
    length = math.hypot(b[0] - a[0], b[1] - a[1])
    return (b[0] - a[0]) / length, (b[1] - a[1]) / length
