"""What an image file says of its place on the earth, and how it passes to what is made of it.

In: an open rasterio dataset, pixels or coordinates. Out: a `Georeference`, coordinates or pixels.
Pixels are (column, row) with (0, 0) at the centre of the first pixel, here as in RPCs.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.imagery.place.gdal import need_rasterio
from geopose.imagery.place.rpc import Rpc

WGS84 = "EPSG:4326"
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
Affine = tuple[float, float, float, float, float, float]
Array = NDArray[np.float64]


class Gcp(NamedTuple):
    """A ground control point: pixel (0, 0 = centre of the first) and coordinates in its CRS."""

    column: float
    row: float
    x: float
    y: float
    z: float = 0.0


@dataclass(frozen=True)
class Georeference:
    """Where an image lies: by RPCs, by a transform in a CRS, by GCPs in a CRS, or unknown.

    Attributes:
        crs: of transform or GCPs: WKT, or "EPSG:n". None = unknown.
        transform: (a, b, c, d, e, f): x = a X + b Y + c, y = d X + e Y + f, where (X, Y) = (0, 0)
            is the outer corner of the first pixel, as in GDAL: a pixel's centre has X = column +
            1/2. Any turn, shear or direction of north.
        gcps: at least three, or none.
        rpc: wins over the others: it alone knows of heights.
    """

    crs: str | None = None
    transform: Affine | None = None
    gcps: tuple[Gcp, ...] = ()
    rpc: Rpc | None = None

    @property
    def kind(self) -> str:
        """ "rpc", "transform", "gcps" or "none": what the place is taken from."""
        if self.rpc is not None:
            return "rpc"
        if self.crs is not None and self.transform is not None:
            return "transform"
        return "gcps" if self.crs is not None and len(self.gcps) >= 3 else "none"

    def cropped(self, column: float, row: float) -> "Georeference":
        """Of a crop whose first pixel is this image's pixel (column, row)."""
        return self._moved(
            1.0, 1.0, column, row, None if self.rpc is None else self.rpc.shifted(column, row)
        )

    def scaled(self, factor: float, factor_y: float | None = None) -> "Georeference":
        """Of the image resized: n pixels become n * factor; its outer corners stay in place."""
        factor_y = factor if factor_y is None else factor_y
        rpc = None if self.rpc is None else self.rpc.scaled(factor, factor_y)
        return self._moved(factor, factor_y, 0.0, 0.0, rpc)

    def _moved(self, sx: float, sy: float, x0: float, y0: float, rpc: Rpc | None) -> "Georeference":
        """New outer coordinates X' = sx (X - x0), Y' = sy (Y - y0)."""
        transform = self.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (
                a / sx, b / sy, c + a * x0 + b * y0, d / sx, e / sy, f + d * x0 + e * y0
            )  # fmt: skip
        gcps = tuple(
            g._replace(column=sx * (g.column + 0.5 - x0) - 0.5, row=sy * (g.row + 0.5 - y0) - 0.5)
            for g in self.gcps
        )
        return replace(self, transform=transform, gcps=gcps, rpc=rpc)

    def to_lonlat(self, column: Any, row: Any, height_m: Any) -> tuple[Array, Array]:
        """(lon, lat), WGS 84 degrees, of pixels; they broadcast.

        Args:
            column: pixels, 0 = centre of the first one.
            row: the same.
            height_m: ellipsoidal metres of the ground there; only RPCs make use of it.

        Returns:
            NaN where the place is not defined.

        Raises:
            InputError: the image has no georeference, or rasterio is not there for its CRS.
        """
        column, row, height_m = np.broadcast_arrays(*map(_float64, (column, row, height_m)))
        if self.rpc is not None:
            return self.rpc.localize(column, row, height_m)
        return change_crs(self._need_crs(), WGS84, *self.to_map(column, row))

    def from_lonlat(self, lon: Any, lat: Any, height_m: Any) -> tuple[Array, Array]:
        """(column, row) of places: the inverse of `to_lonlat`."""
        lon, lat, height_m = np.broadcast_arrays(*map(_float64, (lon, lat, height_m)))
        if self.rpc is not None:
            return self.rpc.project(lon, lat, height_m)
        return self.from_map(*change_crs(WGS84, self._need_crs(), lon, lat))

    def to_map(self, column: Array, row: Array) -> tuple[Array, Array]:
        """(x, y) in `crs` of pixels, by the transform or by GCPs."""
        self._need_crs()
        if self.transform is None:
            return self._by_gcps("xy", row, column)
        a, b, c, d, e, f = self.transform
        outer_x, outer_y = column + 0.5, row + 0.5
        return a * outer_x + b * outer_y + c, d * outer_x + e * outer_y + f

    def from_map(self, x: Array, y: Array) -> tuple[Array, Array]:
        """(column, row) of coordinates in `crs`: the inverse of `to_map`."""
        self._need_crs()
        if self.transform is None:
            row, column = self._by_gcps("rowcol", x, y)
            return column - 0.5, row - 0.5
        a, b, c, d, e, f = self.transform
        determinant = a * e - b * d
        if determinant == 0.0:
            raise InputError(f"a transform that cannot be inverted: {self.transform}")
        dx, dy = x - c, y - f
        return (e * dx - b * dy) / determinant - 0.5, (a * dy - d * dx) / determinant - 0.5

    def _by_gcps(self, method: str, first: Array, second: Array) -> tuple[Array, Array]:
        """GDAL's polynomials through the control points (first order below six points)."""
        rasterio = need_rasterio("an image placed by GCPs")
        points = [
            rasterio.control.GroundControlPoint(g.row + 0.5, g.column + 0.5, g.x, g.y, g.z)
            for g in self.gcps
        ]
        options = {"op": np.positive} if method == "rowcol" else {}
        with rasterio.transform.GCPTransformer(points) as transformer:
            shape = np.shape(first)
            pair = getattr(transformer, method)(np.ravel(first), np.ravel(second), **options)
        return tuple(np.asarray(part, np.float64).reshape(shape) for part in pair)  # type: ignore[return-value]

    def _need_crs(self) -> str:
        if self.kind == "none" or self.crs is None:
            raise InputError(
                "the image says nothing of its place on the earth (no CRS, GCPs or RPCs); give a "
                "file that does"
            )
        return self.crs


def change_crs(source: str, target: str, x: Array, y: Array) -> tuple[Array, Array]:
    """Coordinates in another CRS, any shape; x is east or longitude in both; NaN = undefined.

    Raises:
        InputError: an unknown CRS, or rasterio is missing.
    """
    shape = np.shape(x)
    if source == target:
        return np.array(x, np.float64), np.array(y, np.float64)
    rasterio = need_rasterio("changing coordinates")
    flat = [np.ravel(part).astype(np.float64) for part in (x, y)]
    known = np.isfinite(flat[0]) & np.isfinite(flat[1])
    moved = np.full((2, known.size), np.nan)
    if known.any():
        try:
            moved[:, known] = rasterio.warp.transform(
                parse_crs(source), parse_crs(target), flat[0][known], flat[1][known]
            )
        except rasterio._err.CPLE_BaseError as error:  # another planet, or a local grid
            raise InputError(
                f"coordinates of {_name_of(source)} have no counterpart in {_name_of(target)}; "
                "give a file in a CRS of the earth"
            ) from error
    moved[~np.isfinite(moved)] = np.nan
    return moved[0].reshape(shape), moved[1].reshape(shape)


def _name_of(crs: str) -> str:
    """`EPSG:n`, or the name in the first quotes of WKT."""
    return crs.split('"')[1] if '"' in crs else crs


def parse_crs(crs: str) -> Any:
    """rasterio's CRS of "EPSG:n" or WKT.

    Raises:
        InputError: nobody knows it.
    """
    rasterio = need_rasterio("a map's coordinate system")
    try:
        return rasterio.crs.CRS.from_user_input(crs)
    except (rasterio.errors.CRSError, ValueError) as error:
        raise InputError(f"CRS {crs[:60]!r} is unknown; give EPSG:n, such as EPSG:32617") from error


def read_georeference(dataset: Any) -> Georeference:
    """Of an open rasterio dataset.

    A transform without CRS, or the identity, is no georeference beside RPCs: writers put it there
    for want of a better one, and it would move the image into the Gulf of Guinea.
    """
    rpc = None if dataset.rpcs is None else Rpc.from_gdal(dataset.rpcs)
    crs = None if dataset.crs is None else dataset.crs.to_wkt()
    transform: Affine | None = tuple(dataset.transform)[:6]  # type: ignore[assignment]
    if transform == IDENTITY or (rpc is not None and crs is None):
        transform = None
    points, points_crs = dataset.gcps
    gcps = tuple(Gcp(p.col - 0.5, p.row - 0.5, p.x, p.y, p.z or 0.0) for p in points)
    if gcps and transform is None:
        crs = None if points_crs is None else points_crs.to_wkt()
    return Georeference(crs if transform or gcps else None, transform, gcps, rpc)


def write_georeference(dataset: Any, georeference: Georeference) -> None:
    """Gives all of it to a rasterio dataset being written; GeoTIFF takes a transform or GCPs."""
    rasterio = need_rasterio("writing a georeference")
    crs = None if georeference.crs is None else parse_crs(georeference.crs)
    if georeference.transform is not None:
        dataset.transform = rasterio.Affine(*georeference.transform)
        if crs is not None:
            dataset.crs = crs
    elif georeference.gcps:
        point = rasterio.control.GroundControlPoint
        points = [point(g.row + 0.5, g.column + 0.5, g.x, g.y, g.z) for g in georeference.gcps]
        dataset.gcps = (points, crs)
    if georeference.rpc is not None:
        dataset.rpcs = rasterio.rpc.RPC(**georeference.rpc.to_gdal())


def _float64(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)
