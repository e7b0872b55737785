"""On the map: products in an image's frame laid out in a coordinate system of the earth.

In: a raster with RPCs, a transform or GCPs, and for RPCs the height of the ground (ellipsoidal:
without it GDAL takes 0, which at the JAX views' 20 m below the ellipsoid misses by 20 px and more).
Out: a cloud-optimised GeoTIFF, north up, whose pixel borders are multiples of its resolution, so
that products of several views lie on one grid.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.imagery.files.raster import Raster, create_raster, open_raster, windows
from geopose.imagery.files.raster_writer import TILE
from geopose.imagery.files.sampling import sample
from geopose.imagery.place.flow import gsd_at, metres_per_degree
from geopose.imagery.place.gdal import need_rasterio
from geopose.imagery.place.georeference import WGS84, Georeference, change_crs, parse_crs

UTM = "utm"
_NODE_PX = 32  # between points whose place is worked out; in between it is as good as linear
_BORDER_POINTS = 65  # along each side of the image, for the map's extent
_DEM_STEPS = 8  # a line of sight meets the ground: height, place, height there, and so on
_MAX_SIDE = 2**20
_FEWEST_COLOURS = 3

Array = NDArray[np.float64]


def parse_ground(text: str) -> float | Path:
    """A height in metres, or the name of a height model, as a command's option takes it."""
    try:
        height = float(text)
    except ValueError:
        return Path(text)
    if not math.isfinite(height):
        raise InputError(f"ground height {text}: expected metres above the ellipsoid or a DEM file")
    return height


@dataclass(frozen=True)
class MapLayout:
    """How products are laid out on a map.

    Attributes:
        crs: "utm" or "EPSG:n".
        ground: as `warp_to_map` takes it.
    """

    crs: str
    ground: float | Path | None = None

    def path_of(self, product: Path) -> Path:
        """Where the map of a product is written."""
        return product.with_name(f"{product.stem}_MAP.tif")

    def warp(self, product: Path, tags: dict[str, str] | None = None) -> Path:
        """Writes the map of a product beside it; raises as `warp_to_map` does."""
        with open_raster(product) as raster:
            warp_to_map(raster, self.path_of(product), self.crs, self.ground, tags=tags)
        return self.path_of(product)


def parse_map(crs: str | None, ground: str | None) -> MapLayout | None:
    """What a command's --map and --ground-height ask for.

    Raises:
        InputError: a height without a map, an unknown CRS, or rasterio is missing.
    """
    if crs is None:
        if ground is not None:
            raise InputError("--ground-height goes with --map")
        return None
    need_rasterio("--map")
    if crs != UTM:
        parse_crs(crs)
    return MapLayout(crs, None if ground is None else parse_ground(ground))


def warp_to_map(
    raster: Raster,
    path: Path | str,
    crs: str = UTM,
    ground: float | Path | None = None,
    resolution: float | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Writes a product of an image's frame as a map; no-data where the image has none.

    Images of three bands and more are sampled bilinearly, heights and classes by the nearest pixel.

    Args:
        raster: rectified products come out right everywhere, others at ground height only.
        path: the .tif file.
        crs: "utm" = the zone of the image's centre, or "EPSG:n".
        ground: of an image placed by RPCs: metres above the ellipsoid, or a height model that
            holds such heights (add the geoid's height to one above the sea). Not used otherwise.
        resolution: side of a pixel in the map's units; None = the image's gsd.
        tags: what else is to be known of the file.

    Raises:
        InputError: no georeference, an unknown CRS, no ground height, or a height model elsewhere.
        RunError: the file cannot be written.
    """
    need_rasterio(f"{path}: a map")
    check_place(raster, ground)
    dem = open_raster(ground) if isinstance(ground, Path) else None
    with dem or nullcontext():
        heights = _Dem(dem) if dem is not None else _Level(float(ground or 0.0))  # type: ignore[arg-type]
        grid = _map_grid(raster, crs, heights, resolution)
        _write_map(raster, Path(path), grid, heights, tags or {})


def check_place(raster: Raster, ground: float | Path | None) -> None:
    """Raises InputError unless an image says where it lies, as far as a map needs it."""
    place = raster.georeference
    if place.kind == "none":
        raise InputError(f"{raster.path}: it says nothing of its place on the earth; no map of it")
    if place.rpc is not None and ground is None:
        raise InputError(
            f"{raster.path}: placed by RPCs; give the height of the ground (metres above the "
            "ellipsoid, or a DEM.tif)"
        )


@dataclass(frozen=True)
class _Grid:
    """The map's pixels: their upper left corner, side and number."""

    crs: str
    side: float
    left: int  # in sides
    top: int
    height: int
    width: int
    window: int  # side of the windows in which it is worked out

    def centres(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        """(x, y) of pixels, len(rows) x len(columns)."""
        x = (self.left + columns + 0.5) * self.side
        y = (self.top - rows - 0.5) * self.side
        return tuple(np.meshgrid(x, y))  # type: ignore[return-value]

    @property
    def georeference(self) -> Georeference:
        corner = self.left * self.side, self.top * self.side
        return Georeference(self.crs, (self.side, 0.0, corner[0], 0.0, -self.side, corner[1]))


class _Level:
    """Ground at one height."""

    crs = None

    def __init__(self, height_m: float) -> None:
        self.height_m = height_m

    def at_lonlat(self, lon: Array, lat: Array) -> Array:
        return np.full(np.shape(lon), self.height_m)


class _Dem:
    """Ground of a height model."""

    def __init__(self, raster: Raster) -> None:
        if raster.count != 1 or raster.georeference.kind != "transform":
            raise InputError(
                f"{raster.path}: a height model has one band, a CRS and a transform; this one has "
                f"{raster.count} and is placed by {raster.georeference.kind}"
            )
        self._raster = raster
        self.crs = raster.georeference.crs or ""

    def at(self, x: Array, y: Array) -> Array:
        """Ellipsoidal metres at coordinates in `crs`, bilinear; NaN = unknown."""
        pixels = self._raster.georeference.from_map(x, y)
        values, known = sample(self._raster, *pixels, bilinear=True)
        return np.where(known, values[..., 0].astype(np.float64), np.nan)

    def at_lonlat(self, lon: Array, lat: Array) -> Array:
        shape = np.shape(lon)
        x, y = change_crs(WGS84, self.crs, np.atleast_2d(lon), np.atleast_2d(lat))
        return self.at(x, y).reshape(shape)


def _on_ground(
    place: Georeference, column: Array, row: Array, ground: _Level | _Dem
) -> tuple[Array, Array]:
    """(lon, lat) where the lines of sight of pixels meet the ground."""
    start = 0.0 if place.rpc is None else float(place.rpc.offsets[4])
    height = np.full(np.shape(column), ground.height_m if isinstance(ground, _Level) else start)
    lon, lat = place.to_lonlat(column, row, height)
    if place.rpc is None or isinstance(ground, _Level):
        return lon, lat
    for _ in range(_DEM_STEPS):
        found = ground.at_lonlat(lon, lat)
        height = np.where(np.isnan(found), height, found)
        lon, lat = place.to_lonlat(column, row, height)
    return lon, lat


def _map_grid(raster: Raster, crs: str, ground: _Level | _Dem, resolution: float | None) -> _Grid:
    """The map that holds the whole image."""
    place = raster.georeference
    centre = (raster.width - 1) / 2, (raster.height - 1) / 2
    lon, lat = (
        float(v) for v in _on_ground(place, np.array(centre[0]), np.array(centre[1]), ground)
    )
    height_m = float(ground.at_lonlat(np.array(lon), np.array(lat)))
    if place.rpc is None:
        height_m = 0.0
    if not math.isfinite(lon + lat + height_m):
        raise InputError(
            f"{raster.path}: the ground at its centre is unknown; check height and RPCs"
        )
    if crs.lower() == UTM:
        crs = utm_crs(lon, lat)
    own_side = _side(place, centre, height_m, crs, lat)
    side = own_side if resolution is None else resolution
    if not (math.isfinite(side) and side > 0):
        raise InputError(f"resolution {side}: expected the side of a pixel in units of the map")
    x, y = change_crs(WGS84, crs, *_on_ground(place, *_border(raster), ground))
    if not np.isfinite(x).any():
        raise InputError(f"{raster.path}: it does not lie within {crs}; choose another map")
    left, right = math.floor(np.nanmin(x) / side), math.ceil(np.nanmax(x) / side)
    bottom, top = math.floor(np.nanmin(y) / side), math.ceil(np.nanmax(y) / side)
    if max(right - left, top - bottom) > _MAX_SIDE:
        raise InputError(
            f"a map of {right - left} x {top - bottom} pixels; give a larger resolution"
        )
    # A coarse map needs a wide window of the image for each of its own, so these shrink.
    window = min(max(int(TILE * own_side / side), 16), TILE)
    return _Grid(crs, side, left, top, max(top - bottom, 1), max(right - left, 1), window)


def utm_crs(lon: float, lat: float) -> str:
    """The UTM zone of a place, as EPSG code of WGS 84 (plain zones of 6 degrees everywhere)."""
    zone = int((lon + 180.0) // 6.0) % 60 + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def _side(
    place: Georeference, centre: tuple[float, float], height_m: float, crs: str, lat: float
) -> float:
    """The image's gsd in units of the map."""
    metres = gsd_at(place, *centre, height_m)
    target: Any = parse_crs(crs)
    if target.is_geographic:
        return metres / metres_per_degree(lat)[1]
    return metres / float(target.linear_units_factor[1])


def _border(raster: Raster) -> tuple[Array, Array]:
    """(column, row) of points on the outer edge of the image."""
    x = np.linspace(-0.5, raster.width - 0.5, _BORDER_POINTS)
    y = np.linspace(-0.5, raster.height - 0.5, _BORDER_POINTS)
    column = np.concatenate([x, x, np.full(y.size, x[0]), np.full(y.size, x[-1])])
    row = np.concatenate([np.full(x.size, y[0]), np.full(x.size, y[-1]), y, y])
    return column, row


def _write_map(
    raster: Raster, path: Path, grid: _Grid, ground: _Level | _Dem, tags: dict[str, str]
) -> None:
    floating = raster.dtype.kind == "f"
    nodata = math.nan if floating and raster.nodata is None else raster.nodata
    picture = raster.count >= _FEWEST_COLOURS
    with create_raster(
        path, grid.height, grid.width, raster.count, raster.dtype, nodata=nodata,
        mask=nodata is None, categories=raster.dtype == np.uint8 and not picture,
        georeference=grid.georeference, descriptions=raster.descriptions, units=raster.units,
        tags=tags,
    ) as out:  # fmt: skip
        for rows, columns in windows(grid.height, grid.width, grid.window):
            column, row = _pixels(raster.georeference, grid, rows, columns, ground)
            values, known = sample(raster, column, row, bilinear=picture)
            if nodata is not None:
                values[~known] = nodata
            out.write(values, rows.start, columns.start, known)


def _pixels(
    place: Georeference, grid: _Grid, rows: slice, columns: slice, ground: _Level | _Dem
) -> tuple[Array, Array]:
    """(column, row) in the image of the pixels of a window of the map.

    Worked out at nodes and interpolated: for RPCs at the window's mean height, with the slope by
    height, which RPCs follow over the heights of a window to hundredths of a pixel.
    """
    node_x, node_y = grid.centres(_node_places(rows), _node_places(columns))

    def between(values: Array) -> Array:
        return _interpolate(values, rows, columns)

    if place.rpc is None:
        x, y = change_crs(grid.crs, place.crs or "", node_x, node_y)
        return place.from_map(between(x), between(y))
    lon, lat = change_crs(grid.crs, WGS84, node_x, node_y)
    if isinstance(ground, _Level):
        column, row = place.rpc.project(lon, lat, ground.height_m)
        return between(column), between(row)
    x, y = change_crs(grid.crs, ground.crs, node_x, node_y)
    height = ground.at(between(x), between(y))
    if np.isnan(height).all():
        return np.full(height.shape, np.nan), np.full(height.shape, np.nan)
    middle = float(np.nanmean(height))
    column, row = place.rpc.project(lon, lat, middle)
    slope = place.rpc.derivatives(lon, lat, middle)[..., 2]
    above = height - middle
    return (
        between(column) + above * between(slope[..., 0]),
        between(row) + above * between(slope[..., 1]),
    )


def _node_places(pixels: slice) -> Array:
    cells = (pixels.stop - 1 - pixels.start) // _NODE_PX + 1
    return pixels.start + _NODE_PX * np.arange(cells + 1.0)


def _interpolate(nodes: Array, rows: slice, columns: slice) -> Array:
    """Values at every pixel of a window from those at its nodes."""
    for axis, pixels in enumerate((rows, columns)):
        cell, share = np.divmod(np.arange(pixels.stop - pixels.start), _NODE_PX)
        upper, lower = np.take(nodes, cell, axis), np.take(nodes, cell + 1, axis)
        weight = np.expand_dims(share / _NODE_PX, 1 - axis)
        nodes = upper + weight * (lower - upper)
    return nodes
