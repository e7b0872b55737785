"""One plot of land: local axes along the streets, and what is put on it piece by piece.

In: a random stream, a rotated frame and the extent in which small objects matter. Out: faces in
the world's mesh and shapes in the list that the ground painter draws, in order.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from geopose.sample_city.world.cities import CityStyle
from geopose.sample_city.world.mesh import Color, MeshBuilder, Point, prism

Rect = tuple[float, float, float, float]  # s0, t0, s1, t1: local axes, metres


@dataclass(frozen=True)
class Shape:
    """Something flat on the ground: a filled polygon, or a line if `width_m` > 0."""

    points: list[Point]
    color: Color
    width_m: float = 0.0
    water: bool = False


@dataclass
class World:
    """A city under construction.

    Attributes:
        bounds_m: (x0, y0, x1, y1) outside of which trees and cars are left out: they are too low
            to be seen in, or to throw a shadow into, the image.
    """

    style: CityStyle
    rng: np.random.Generator
    bounds_m: Rect
    mesh: MeshBuilder = field(default_factory=MeshBuilder)
    shapes: list[Shape] = field(default_factory=list)

    def near(self, point: Point) -> bool:
        """Whether small objects at this point matter."""
        x0, y0, x1, y1 = self.bounds_m
        return x0 <= point[0] <= x1 and y0 <= point[1] <= y1


@dataclass
class Site:
    """A rectangle in axes (s, t) turned by `turn_rad` around `origin`, with what stands on it."""

    world: World
    origin: Point
    turn_rad: float
    rect: Rect
    centrality: float = 0.5
    taken: list[Rect] = field(default_factory=list)
    later: list[tuple[Rect, Color]] = field(default_factory=list)  # painted when all else is

    def __post_init__(self) -> None:
        self._cos, self._sin = math.cos(self.turn_rad), math.sin(self.turn_rad)

    @property
    def rng(self) -> np.random.Generator:
        """The scene's one random stream."""
        return self.world.rng

    @property
    def style(self) -> CityStyle:
        """The city's look."""
        return self.world.style

    def point(self, s: float, t: float) -> Point:
        """Local to world, metres."""
        x, y = self.origin
        return x + s * self._cos - t * self._sin, y + s * self._sin + t * self._cos

    def ring(self, rect: Rect, along_t: bool = False) -> list[Point]:
        """World corners of a local rectangle; its first edge lies along s (or along t)."""
        s0, t0, s1, t1 = rect
        corners = [self.point(*c) for c in ((s0, t0), (s1, t0), (s1, t1), (s0, t1))]
        return corners[1:] + corners[:1] if along_t else corners

    def centred_ring(self, s: float, t: float, size: Point, turn_rad: float) -> list[Point]:
        """World corners of a small rectangle turned within the site."""
        c, d = math.cos(turn_rad), math.sin(turn_rad)
        half = size[0] / 2, size[1] / 2
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        local = [(a * half[0], b * half[1]) for a, b in signs]
        return [self.point(s + c * u - d * v, t + d * u + c * v) for u, v in local]

    def pick(self, colors: tuple[Color, ...], spread: float = 9.0) -> Color:
        """One of the colours, slightly changed."""
        return self.vary(colors[int(self.rng.integers(len(colors)))], spread)

    def vary(self, color: Color, spread: float) -> Color:
        """The colour with a random change of brightness and a smaller one of hue."""
        shift = self.rng.normal(0.0, spread) + self.rng.normal(0.0, spread / 3, 3)
        r, g, b = np.clip(np.asarray(color) + shift, 8, 250).tolist()
        return r, g, b

    def fill(self, rect: Rect, color: Color, water: bool = False) -> None:
        """Paints a rectangle on the ground."""
        self.world.shapes.append(Shape(self.ring(rect), color, water=water))

    def line(self, a: Point, b: Point, color: Color, width_m: float) -> None:
        """Paints a line on the ground between two local points."""
        self.world.shapes.append(Shape([self.point(*a), self.point(*b)], color, width_m))

    def take(self, rect: Rect) -> None:
        """Marks a rectangle as built on."""
        self.taken.append(rect)

    def free(self, s: float, t: float, radius: float) -> bool:
        """Whether a disc is clear of everything built on this site."""
        return not any(
            s0 - radius < s < s1 + radius and t0 - radius < t < t1 + radius
            for s0, t0, s1, t1 in self.taken
        )

    def tree(self, s: float, t: float, height: float, radius: float) -> None:
        """A crown of several lumps, if the place is free and near the image."""
        point = self.point(s, t)
        if not self.world.near(point) or not self.free(s, t, radius * 0.8):
            return
        rng, mesh = self.rng, self.world.mesh
        color = self.vary(self.style.crown, 7.0)
        rz = min(0.42 * height, 1.1 * radius)
        mesh.ellipsoid(*point, height - rz, radius * 0.85, rz, color)
        for turn in rng.uniform(0, 2 * math.pi) + np.arange(3) * 2.1:
            lump, out = rng.uniform(0.45, 0.65) * radius, 0.5 * radius
            x, y = point[0] + out * math.cos(turn), point[1] + out * math.sin(turn)
            z = height - rz * rng.uniform(0.9, 1.5)
            mesh.ellipsoid(x, y, z, lump, min(lump, rz), self.vary(color, 5.0))

    def trees(self, rect: Rect, per_hectare: float, height: tuple[float, float]) -> None:
        """Scatters trees over a rectangle."""
        s0, t0, s1, t1 = rect
        if s1 <= s0 or t1 <= t0:
            return
        rate = per_hectare * self.style.tree_density * (s1 - s0) * (t1 - t0) / 1e4
        if self.style.clumps > 0.0:
            self._clumps(rect, rate * self.style.clumps, height)
            rate *= 1.0 - self.style.clumps
        for _ in range(int(self.rng.poisson(rate))):
            tall = self.rng.uniform(*height)
            radius = tall * self.rng.uniform(0.28, 0.42)
            self.tree(self.rng.uniform(s0, s1), self.rng.uniform(t0, t1), tall, radius)

    def _clumps(self, rect: Rect, count: float, height: tuple[float, float]) -> None:
        """Groups of trees whose crowns meet."""
        s0, t0, s1, t1 = rect
        size = self.rng.uniform(4.0, 14.0)
        for _ in range(int(self.rng.poisson(count / size))):
            s, t = self.rng.uniform(s0, s1), self.rng.uniform(t0, t1)
            tall = self.rng.uniform(*height)
            for _ in range(int(self.rng.poisson(size))):
                own = tall * self.rng.uniform(0.7, 1.2)
                away = self.rng.normal(0.0, 0.45 * own * math.sqrt(size / 6), 2)
                at = min(max(s + away[0], s0), s1), min(max(t + away[1], t0), t1)
                self.tree(*at, own, own * self.rng.uniform(0.3, 0.45))

    def oval(self, half: Point, middle: Point, color: Color) -> None:
        """Paints an ellipse of the given half axes on the ground."""
        turns, (s, t) = [2 * math.pi * i / 40 for i in range(40)], middle
        local = [(s + half[0] * math.cos(a), t + half[1] * math.sin(a)) for a in turns]
        self.world.shapes.append(Shape([self.point(*p) for p in local], color))

    def car(self, s: float, t: float, turn_rad: float, z: float = 0.0) -> None:
        """A parked or driving car, on the ground or at a height: body and cabin."""
        if not self.world.near(self.point(s, t)):
            return
        paint = self.pick(CAR_PAINTS, 8.0)
        length, width = self.rng.uniform(4.0, 4.9), self.rng.uniform(1.75, 1.95)
        body = self.centred_ring(s, t, (length, width), turn_rad)
        prism(self.world.mesh, body, z, z + 0.8, paint)
        cabin = self.centred_ring(s, t, (length * 0.5, width * 0.88), turn_rad)
        prism(self.world.mesh, cabin, z + 0.8, z + 1.45, (44.0, 48.0, 54.0), paint)

    def parking(self, rect: Rect, filled: float) -> None:
        """A paved lot with painted bays along s and cars in part of them."""
        s0, t0, s1, t1 = rect
        if s1 - s0 < 8 or t1 - t0 < 6:
            return
        self.fill(rect, self.vary(self.style.asphalt, 7.0))
        bay, depth, aisle = 2.7, 5.0, 6.5
        rows, row = [t0 + 0.6], t0 + 0.6 + depth + aisle
        while row + depth < t1:
            rows += [row, row + depth + 0.2] if row + 2 * depth + aisle < t1 else [row]
            row += 2 * depth + 0.2 + aisle
        count = int((s1 - s0 - 2.0) / bay)
        filled *= self.rng.uniform(0.5, 1.3)
        for number, row in enumerate(rows):
            chance = filled * (1.1 - 0.7 * number / len(rows))  # nearest the entrance first
            if self.rng.random() < 0.5:
                self._island(s0 + 1.0 + bay * int(count * self.rng.uniform(0.2, 0.8)), row, depth)
            for i in range(count + 1):
                s = s0 + 1.0 + i * bay
                self.line((s, row), (s, row + depth), MARKING, 0.14)
                if i < count and self.rng.random() < chance and self.free(s, row + depth / 2, 3.0):
                    self.car(s + bay / 2, row + depth / 2, math.pi / 2)
        self.take(rect)

    def _island(self, s: float, t: float, depth: float) -> None:
        """A planted bay in a parking row."""
        rect = (s + 0.3, t + 0.3, s + 2.4, t + depth - 0.3)
        self.fill(rect, self.vary(self.style.grass, 6.0))
        self.tree(s + 1.35, t + depth / 2, self.rng.uniform(4.5, 7.0), self.rng.uniform(1.6, 2.4))
        self.take(rect)


MARKING: Color = (206.0, 204.0, 196.0)
CAR_PAINTS: tuple[Color, ...] = (
    (230, 230, 228),
    (196, 198, 200),
    (60, 62, 66),
    (36, 36, 40),
    (134, 40, 38),
    (52, 72, 116),
    (150, 146, 138),
)
