"""Rational polynomials (RPC00B): where a point of the earth is seen in an image, and back.

In: longitude and latitude in degrees (WGS 84), metres above the ellipsoid (not above the sea).
Out: (column, row) in pixels; (0, 0) is the centre of the first pixel.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.data.decoding import read_bytes
from geopose.errors import InputError, one_line

TERMS = 20
_NEWTON_STEPS = 25
_NEWTON_PX = 1e-7
# Powers of (longitude, latitude, height) of each term: NGA STDI-0002, volume 1, appendix E, RPC00B.
_POWERS = np.array([
    (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1),
    (2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 1), (3, 0, 0), (1, 2, 0), (1, 0, 2),
    (2, 1, 0), (0, 3, 0), (0, 1, 2), (2, 0, 1), (0, 2, 1), (0, 0, 3),
])  # fmt: skip
# What GDAL (and rasterio's RPC) calls each field, and the JSON files of crops.
_GDAL_OFFSETS = ("samp_off", "line_off", "long_off", "lat_off", "height_off")
_GDAL_SCALES = ("samp_scale", "line_scale", "long_scale", "lat_scale", "height_scale")
_GDAL_COEFFICIENTS = ("samp_num_coeff", "samp_den_coeff", "line_num_coeff", "line_den_coeff")
_JSON_AXES = ("col", "row", "lon", "lat", "alt")
_JSON_COEFFICIENTS = ("col_num", "col_den", "row_num", "row_den")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rpc:
    """The RPC00B model of NGA STDI-0002: two quotients of cubic polynomials.

    Attributes:
        offsets: of column, row (px), longitude, latitude (degrees), height (ellipsoidal metres).
        scales: in the same order and units, none 0.
        coefficients: 4 x 20: column numerator and denominator, row numerator and denominator, in
            the standard's order of terms.
        errors: (ERR_BIAS, ERR_RAND) in metres, which files carry along; None = unknown.
    """

    offsets: Array
    scales: Array
    coefficients: Array
    errors: tuple[float | None, float | None] = field(default=(None, None))

    def project(self, lon: Any, lat: Any, height_m: Any) -> tuple[Array, Array]:
        """(column, row) in pixels of points: degrees, degrees, ellipsoidal metres; they broadcast.

        (0, 0) is the centre of the first pixel. NaN in gives NaN out.
        """
        values = self._quotients(*self._normalise(lon, lat, height_m))
        return self._pixels(values)

    def derivatives(self, lon: Any, lat: Any, height_m: Any) -> Array:
        """d(column, row) / d(lon, lat, height) in px per degree and px per metre: (..., 2, 3)."""
        return self._project_and_derive(lon, lat, height_m)[1]

    def localize(self, column: Any, row: Any, height_m: Any) -> tuple[Array, Array]:
        """(lon, lat) in degrees of pixels at ellipsoidal heights in metres; they broadcast.

        Newton's method on `project`, to 1e-7 px. NaN where it does not arrive: a point far outside
        the region for which the polynomials were made.
        """
        column, row, height_m = np.broadcast_arrays(*map(_float64, (column, row, height_m)))
        if column.size == 0:
            return np.empty(column.shape), np.empty(column.shape)
        # The mean point first: from there all others are a step or two away.
        with np.errstate(all="ignore"):
            x, y, h = (_finite_mean(part) for part in (column, row, height_m))
            seed = self._newton(x, y, h, self.offsets[2], self.offsets[3])
            lon, lat = self._newton(column, row, height_m, *seed)
        return lon, lat

    def _newton(
        self, column: Array, row: Array, height_m: Array, lon: Any, lat: Any
    ) -> tuple[Array, Array]:
        """Longitudes and latitudes from a first guess of them; NaN where it does not converge."""
        lon, lat = np.full(column.shape, lon), np.full(column.shape, lat)
        missing = np.full(column.shape, np.inf)
        for _ in range(_NEWTON_STEPS):
            pixels, slopes = self._project_and_derive(lon, lat, height_m)
            dx, dy = column - pixels[0], row - pixels[1]
            missing = np.hypot(dx, dy)
            if not np.any(missing > _NEWTON_PX):
                break
            (a, b), (c, d) = np.moveaxis(slopes[..., :2], (-2, -1), (0, 1))
            determinant = a * d - b * c
            lon = lon + (d * dx - b * dy) / determinant
            lat = lat + (a * dy - c * dx) / determinant
        lost = ~(missing <= 1e3 * _NEWTON_PX)
        return np.where(lost, np.nan, lon), np.where(lost, np.nan, lat)

    def shifted(self, column: float, row: float) -> "Rpc":
        """The model of a crop whose first pixel is this image's pixel (column, row)."""
        return replace(self, offsets=self.offsets - (column, row, 0.0, 0.0, 0.0))

    def scaled(self, factor: float, factor_y: float | None = None) -> "Rpc":
        """The model of the image resized: n pixels become n * factor (> 1 enlarges).

        Outer corners stay where they are, so pixel centres move: c' = factor (c + 1/2) - 1/2.
        """
        factors = np.array([factor, factor if factor_y is None else factor_y])
        offsets, scales = self.offsets.copy(), self.scales.copy()
        offsets[:2] = factors * (offsets[:2] + 0.5) - 0.5
        scales[:2] *= factors
        return replace(self, offsets=offsets, scales=scales)

    def _normalise(self, lon: Any, lat: Any, height_m: Any) -> tuple[Array, Array, Array]:
        offsets, scales = self.offsets[2:], self.scales[2:]
        return (
            (_float64(lon) - offsets[0]) / scales[0],
            (_float64(lat) - offsets[1]) / scales[1],
            (_float64(height_m) - offsets[2]) / scales[2],
        )

    def _pixels(self, values: Array) -> tuple[Array, Array]:
        return (
            values[0] / values[1] * self.scales[0] + self.offsets[0],
            values[2] / values[3] * self.scales[1] + self.offsets[1],
        )

    def _quotients(self, lon: Array, lat: Array, height: Array) -> Array:
        """The four polynomials at normalised points: 4 x the broadcast shape."""
        return np.tensordot(self.coefficients, _monomials(lon, lat, height), axes=1)

    def _project_and_derive(
        self, lon: Any, lat: Any, height_m: Any
    ) -> tuple[tuple[Array, Array], Array]:
        point = self._normalise(lon, lat, height_m)
        values = self._quotients(*point)
        slopes = np.empty((*values.shape[1:], 2, 3))
        for axis in range(3):
            by_axis = np.tensordot(self.coefficients, _monomials(*point, axis), axes=1)
            for k in range(2):
                top, bottom = values[2 * k], values[2 * k + 1]
                slope = (by_axis[2 * k] * bottom - top * by_axis[2 * k + 1]) / bottom**2
                slopes[..., k, axis] = slope * (self.scales[k] / self.scales[2 + axis])
        return self._pixels(values), slopes

    @staticmethod
    def from_gdal(rpcs: Any) -> "Rpc":
        """From rasterio's RPC object (of RPC tags, NITF, RPB and RPC.TXT files alike)."""
        return _checked(
            [getattr(rpcs, name) for name in _GDAL_OFFSETS],
            [getattr(rpcs, name) for name in _GDAL_SCALES],
            [getattr(rpcs, name) for name in _GDAL_COEFFICIENTS],
            (rpcs.err_bias, rpcs.err_rand),
        )

    def to_gdal(self) -> dict[str, Any]:
        """Keyword arguments of `rasterio.rpc.RPC`."""
        names = (*_GDAL_OFFSETS, *_GDAL_SCALES)
        numbers = [*self.offsets.tolist(), *self.scales.tolist()]
        lists = dict(zip(_GDAL_COEFFICIENTS, self.coefficients.tolist(), strict=True))
        bias, rand = self.errors
        return {
            **dict(zip(names, numbers, strict=True)),
            **lists,
            "err_bias": bias,
            "err_rand": rand,
        }

    @staticmethod
    def from_mapping(rpc: Mapping[str, Any]) -> "Rpc":
        """From names as in JSON files of crops: row_offset, col_num, alt_scale and so on."""
        return _checked(
            [rpc[f"{axis}_offset"] for axis in _JSON_AXES],
            [rpc[f"{axis}_scale"] for axis in _JSON_AXES],
            [rpc[name] for name in _JSON_COEFFICIENTS],
            (None, None),
        )


def read_rpc_json(path: Path | str) -> Rpc:
    """The model in a JSON file: {"rpc": {"row_offset": ..., "row_num": [20 numbers], ...}}.

    Raises:
        InputError: no such file, not JSON, or not such a model.
    """
    path = Path(path)
    try:
        content = json.loads(read_bytes(path))
        return Rpc.from_mapping(content.get("rpc", content))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error, 120)
        raise InputError(
            f"{path}: not an RPC ({what}); expected JSON with row_offset, row_num and so on"
        ) from error


def _checked(
    offsets: Sequence[Any],
    scales: Sequence[Any],
    coefficients: Sequence[Any],
    errors: tuple[float | None, float | None],
) -> Rpc:
    """The model of these numbers; ValueError if they are none."""
    rpc = Rpc(_float64(offsets), _float64(scales), _float64(coefficients), errors)
    if rpc.coefficients.shape != (4, TERMS):
        raise ValueError(f"coefficients of shape {rpc.coefficients.shape}, expected (4, {TERMS})")
    if not all(np.isfinite(part).all() for part in (rpc.offsets, rpc.scales, rpc.coefficients)):
        raise ValueError("a number that is not finite")
    if not rpc.scales.all():
        raise ValueError("a scale of 0")
    return rpc


def _monomials(lon: Array, lat: Array, height: Array, derive: int | None = None) -> Array:
    """The 20 terms at normalised points, or their derivatives by one axis: 20 x the shape."""
    powers = [_cube(value) for value in np.broadcast_arrays(lon, lat, height)]
    terms = np.empty((TERMS, *powers[0].shape[1:]))
    for term, exponents in enumerate(_POWERS.tolist()):
        factor, parts = 1.0, list(exponents)
        if derive is not None:
            factor, parts[derive] = float(exponents[derive]), max(exponents[derive] - 1, 0)
        i, j, k = parts
        terms[term] = factor * powers[0][i] * powers[1][j] * powers[2][k]
    return terms


def _cube(value: Array) -> Array:
    """Powers 0 to 3 of a value, along a new first axis."""
    return np.stack([np.ones_like(value), value, value**2, value**3])


def _finite_mean(value: Array) -> Array:
    known = value[np.isfinite(value)]
    return np.asarray(known.mean() if known.size else np.nan)


def _float64(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)
