"""Which surface is seen in every pixel: exact z-buffer of planar faces and ellipsoids.

In: a `Mesh` in metres and an affine projection. Out: per pixel the height of the seen surface and
the number of the face it belongs to.

The camera is affine: a point at height Z above ground pixel g is seen at p = g - Z k, with k in
pixels per metre. Along the ray of pixel p the candidates are g = p + Z k, so the seen surface is
simply the one with the largest Z: height is its own depth, and no division by depth happens.
The sun is a second such camera: a point is lit where no higher surface shares its sun pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopose.sample_city.world.mesh import Mesh

GROUND_ID = -1
_EDGE_TOLERANCE_PX = 1e-6  # pixel centres on a shared edge belong to both faces: no gaps
_MIN_AREA_PX = 1e-9  # faces seen edge-on
_CHUNK = 1 << 21


@dataclass(frozen=True)
class View:
    """An affine projection of the ground plane and its pixel grid.

    Attributes:
        k: (x, y) displacement in pixels per metre of height, from the seen pixel to its ground.
        gsd_m: metres per pixel.
        origin_px: ground pixel (x, y) of the grid's first pixel centre.
        shape: (height, width) of the grid.
    """

    k: tuple[float, float]
    gsd_m: float
    origin_px: tuple[int, int]
    shape: tuple[int, int]

    def project(self, points_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points (..., 3) in metres -> grid coordinates (..., 2) in pixels (x, y)."""
        ground_px = points_m[..., :2] / self.gsd_m
        return ground_px - points_m[..., 2:] * np.asarray(self.k) - np.asarray(self.origin_px)


@dataclass
class Buffers:
    """What a view sees.

    Attributes:
        z_m: H x W float32, height of the seen surface; 0 on the ground.
        ids: H x W int32, face number, `mesh.face_count` + ellipsoid number, or GROUND_ID.
    """

    z_m: NDArray[np.float32]
    ids: NDArray[np.int32]


def rasterize(mesh: Mesh, view: View) -> Buffers:
    """Fills the buffers of a view with all faces and ellipsoids of the mesh."""
    buffers = Buffers(np.zeros(view.shape, np.float32), np.full(view.shape, GROUND_ID, np.int32))
    for fragments in _face_fragments(mesh, view):
        _resolve(buffers, *fragments)
    for fragments in _ellipsoid_fragments(mesh, view):
        _resolve(buffers, *fragments)
    return buffers


def _resolve(
    buffers: Buffers,
    pixel: NDArray[np.int64],
    z_m: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> None:
    """Keeps the highest fragment of every pixel; on a tie the last one listed."""
    z_flat, id_flat = buffers.z_m.reshape(-1), buffers.ids.reshape(-1)
    np.maximum.at(z_flat, pixel, z_m)
    seen = z_m >= z_flat[pixel]
    id_flat[pixel[seen]] = ids[seen]


def _expand(start: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Ranges start..start+count-1 one after another: (owner of each element, element)."""
    owner = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    return owner, np.arange(len(owner)) - np.repeat(first - start, count)


def _chunks(sizes: NDArray[np.int64]) -> Iterator[slice]:
    """Cuts a list of items into slices whose sizes add up to about _CHUNK."""
    total = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        base = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, base + _CHUNK)), start + 1)
        yield slice(start, stop)
        start = stop


def _face_fragments(mesh: Mesh, view: View) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Pixels of every face that shows its outer side: (flat pixel, z, face number)."""
    height, width = view.shape
    xy = view.project(mesh.verts)
    normal = newell(np.concatenate([xy, mesh.verts[..., 2:]], axis=-1))
    low, high = xy.min(axis=1), xy.max(axis=1)
    inside = (high >= 0).all(axis=1) & (low[:, 0] <= width - 1) & (low[:, 1] <= height - 1)
    face = np.flatnonzero((normal[:, 2] > 2 * _MIN_AREA_PX) & inside)
    xy, normal, z_verts = xy[face], normal[face], mesh.verts[face, :, 2]
    slope = -normal[:, :2] / normal[:, 2:]
    offset = z_verts[:, 0] - (slope * xy[:, 0]).sum(axis=1)
    z_low, z_high = z_verts.min(axis=1), z_verts.max(axis=1)

    top = np.ceil(np.maximum(low[face, 1] - _EDGE_TOLERANCE_PX, 0)).astype(np.int64)
    bottom = np.floor(np.minimum(high[face, 1] + _EDGE_TOLERANCE_PX, height - 1)).astype(np.int64)
    owner, row = _expand(top, np.maximum(bottom - top + 1, 0))
    left, right = _spans(xy, owner, row, width)
    filled = right >= left
    owner, row, left, right = owner[filled], row[filled], left[filled], right[filled]
    for part in _chunks(right - left + 1):
        index, column = _expand(left[part], right[part] - left[part] + 1)
        owner_px = owner[part][index]
        z_row = offset[owner[part]] + slope[owner[part], 1] * row[part]
        z = z_row[index] + slope[owner_px, 0] * column
        np.clip(z, z_low[owner_px], z_high[owner_px], out=z)
        yield (
            row[part][index] * width + column,
            z.astype(np.float32),
            face[owner_px].astype(np.int32),
        )


def _spans(
    xy: NDArray[np.float64], owner: NDArray[np.int64], row: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last pixel centre of a convex outline in each of its rows (clipped, inclusive)."""
    left = np.full(len(row), 0.0)
    right = np.full(len(row), width - 1.0)
    following = np.roll(xy, -1, axis=1)
    for edge in range(xy.shape[1]):
        start, step = xy[:, edge], following[:, edge] - xy[:, edge]
        run = step[:, 0] / np.where(step[:, 1] == 0.0, 1.0, step[:, 1])
        crossing = start[owner, 0] + run[owner] * (row - start[owner, 1])
        falling, rising = step[owner, 1] > 0, step[owner, 1] < 0
        right = np.where(falling, np.minimum(right, crossing + _EDGE_TOLERANCE_PX), right)
        left = np.where(rising, np.maximum(left, crossing - _EDGE_TOLERANCE_PX), left)
    right = np.clip(right, -1.0, width)
    left = np.clip(left, 0.0, width + 1.0)
    return np.ceil(left).astype(np.int64), np.floor(right).astype(np.int64)


def _ellipsoid_fragments(mesh: Mesh, view: View) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Upper intersections of the rays with the tree crowns: (flat pixel, z, number)."""
    height, width = view.shape
    kx, ky = view.k
    centre = view.project(mesh.ellipsoids[:, :3])
    ground = mesh.ellipsoids[:, :2] / view.gsd_m - np.asarray(view.origin_px)
    z_centre = mesh.ellipsoids[:, 2]
    radius = mesh.ellipsoids[:, 3] / view.gsd_m
    z_radius = mesh.ellipsoids[:, 4]
    reach = np.hypot(radius[:, None], z_radius[:, None] * np.array([[kx, ky]]))
    low = np.ceil(np.maximum(centre - reach, 0)).astype(np.int64)
    high = np.floor(np.minimum(centre + reach, [width - 1, height - 1])).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    tree, row = _expand(low[:, 1], np.where(extent[:, 0] > 0, extent[:, 1], 0))
    quad = kx * kx + ky * ky
    for part in _chunks(extent[tree, 0]):
        index, column = _expand(low[tree[part], 0], extent[tree[part], 0])
        owner = tree[part][index]
        y = row[part][index]
        # |p + Z k - c|^2 / r^2 + (Z - zc)^2 / rz^2 = 1, upper root for Z
        dx, dy = column - ground[owner, 0], y - ground[owner, 1]
        inv_r2, inv_z2 = radius[owner] ** -2.0, z_radius[owner] ** -2.0
        a = quad * inv_r2 + inv_z2
        b = (dx * kx + dy * ky) * inv_r2 - z_centre[owner] * inv_z2
        c = (dx * dx + dy * dy) * inv_r2 + z_centre[owner] ** 2 * inv_z2 - 1.0
        root = b * b - a * c
        hit = root >= 0
        z = (np.sqrt(root[hit]) - b[hit]) / a[hit]
        above = z > 0
        pixel = (y * width + column)[hit][above]
        number = (owner[hit][above] + mesh.face_count).astype(np.int32)
        yield pixel, z[above].astype(np.float32), number


def newell(polygons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newell normals of polygons (N, V, 3), length = twice the area; repeated vertices are fine."""
    a, b = polygons, np.roll(polygons, -1, axis=1)
    return np.cross(a - polygons[:, :1], b - polygons[:, :1]).sum(axis=1)
