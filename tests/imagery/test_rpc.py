"""Rational polynomials: against known ones, against GDAL, there and back, crops and zooms."""

import json
from pathlib import Path

import numpy as np
import pytest

from geopose.errors import InputError
from geopose.imagery.place.rpc import Rpc, read_rpc_json
from tests.made_up_rpc import LAT, LON, made_up_rpc
from tests.tiny_data import REALDATA

JAX = REALDATA / "jax068_wv3"
real = pytest.mark.skipif(not JAX.exists(), reason="../shared/realdata is absent")


def _points(count: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y, h = rng.uniform(-1, 1, (3, count))
    return LON + 0.0015 * x, LAT + 0.0015 * y, 30 + 80 * h


def _by_hand(rpc: Rpc, lon: float, lat: float, height: float) -> tuple[float, float]:
    """The standard's formula, written out with its own letters: P latitude, L longitude."""
    L, P, H = (
        (v - o) / s
        for v, o, s in zip((lon, lat, height), rpc.offsets[2:], rpc.scales[2:], strict=True)
    )
    terms = [
        1, L, P, H, L * P, L * H, P * H, L**2, P**2, H**2, P * L * H, L**3, L * P**2, L * H**2,
        L**2 * P, P**3, P * H**2, L**2 * H, P**2 * H, H**3,
    ]  # fmt: skip
    values = [sum(c * t for c, t in zip(row, terms, strict=True)) for row in rpc.coefficients]
    return (
        values[0] / values[1] * rpc.scales[0] + rpc.offsets[0],
        values[2] / values[3] * rpc.scales[1] + rpc.offsets[1],
    )


def test_it_is_the_formula_of_the_standard() -> None:
    rpc = made_up_rpc(bend=0.02)
    for lon, lat, height in zip(*_points(5), strict=True):
        expected = _by_hand(rpc, lon, lat, height)
        np.testing.assert_allclose(rpc.project(lon, lat, height), expected, rtol=1e-12)


def test_there_and_back_and_shapes() -> None:
    rpc = made_up_rpc(bend=0.01)
    lon, lat, height = _points()
    column, row = rpc.project(lon, lat, height)
    back = rpc.localize(column, row, height)
    np.testing.assert_allclose(back, (lon, lat), atol=1e-12)
    assert rpc.localize(3.0, 4.0, 20.0)[0].shape == ()
    grid = rpc.localize(np.arange(4.0), np.arange(3.0)[:, None], 0.0)
    assert grid[0].shape == (3, 4)
    assert rpc.localize(np.empty(0), np.empty(0), 5.0)[0].shape == (0,)


def test_unknown_heights_give_unknown_places() -> None:
    rpc = made_up_rpc()
    lon, _ = rpc.localize(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([np.nan, 3.0]))
    assert np.isnan(lon).tolist() == [True, False]
    column, _ = rpc.project(LON, LAT, np.array([np.nan, 3.0]))
    assert np.isnan(column).tolist() == [True, False]
    assert np.isnan(rpc.localize(np.nan, 1.0, 1.0)[0])


def test_derivatives_agree_with_differences() -> None:
    rpc = made_up_rpc(bend=0.02)
    lon, lat, height = _points()
    slopes = rpc.derivatives(lon, lat, height)
    for axis, step in enumerate((1e-6, 1e-6, 0.1)):
        steps = np.zeros(3)
        steps[axis] = step
        ahead = np.stack(rpc.project(lon + steps[0], lat + steps[1], height + steps[2]), -1)
        behind = np.stack(rpc.project(lon - steps[0], lat - steps[1], height - steps[2]), -1)
        np.testing.assert_allclose(slopes[..., axis], (ahead - behind) / (2 * step), rtol=1e-5)


def test_a_crop_and_a_zoom_see_the_same_ground_half_a_pixel_included() -> None:
    rpc = made_up_rpc(bend=0.01)
    column, row = rpc.project(*_points())
    moved = rpc.shifted(7, 30).project(*_points())
    np.testing.assert_allclose(moved, (column - 7, row - 30))
    half = rpc.scaled(0.5).project(*_points())
    # Pixels 0 and 1 become pixel 0: its centre lies between theirs, at 0.5.
    np.testing.assert_allclose(half, ((column - 0.5) / 2, (row - 0.5) / 2), atol=1e-9)
    again = rpc.scaled(3.0, 2.0).scaled(1 / 3, 0.5).project(*_points())
    np.testing.assert_allclose(again, (column, row), atol=1e-9)


def test_gdal_agrees_and_its_tags_go_there_and_back() -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    from rasterio.transform import RPCTransformer

    rpc = made_up_rpc(bend=0.01)
    theirs = rasterio.rpc.RPC(**rpc.to_gdal())
    back = Rpc.from_gdal(theirs)
    np.testing.assert_array_equal(back.coefficients, rpc.coefficients)
    lon, lat, height = _points()
    column, row = rpc.project(lon, lat, height)
    with RPCTransformer(theirs) as gdal:
        rows, columns = gdal.rowcol(lon, lat, height, op=np.positive)
    # GDAL counts from the outer corner of the first pixel.
    np.testing.assert_allclose(np.stack([columns, rows]) - 0.5, (column, row), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"row_num": [1.0] * 19}, "inhomogeneous|shape"),
        ({"lat_scale": 0.0}, "scale of 0"),
        ({"alt_offset": float("nan")}, "finite"),
        ({"col_den": None}, "not an RPC"),
    ],
)
def test_a_broken_json_is_one_line(tmp_path: Path, change: dict, said: str) -> None:
    axes = ("row", "col", "lon", "lat", "alt")
    numbers = {f"{axis}_{kind}": 1.0 for axis in axes for kind in ("offset", "scale")}
    rpc = numbers | dict.fromkeys(("row_num", "row_den", "col_num", "col_den"), [1.0] * 20)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"rpc": rpc}))
    assert read_rpc_json(path).coefficients.shape == (4, 20)
    path.write_text(json.dumps({"rpc": rpc | change}))
    with pytest.raises(InputError, match=said):
        read_rpc_json(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not an RPC"):
        read_rpc_json(path)


@real
def test_tags_of_a_crop_and_its_json_are_the_same_model() -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    from geopose.imagery.files.raster import open_raster

    with open_raster(JAX / "train/JAX_068010_RGB.tif") as image:
        rpc = image.georeference.rpc
    other = read_rpc_json(JAX / "rpc_raw/JAX_068_010_RGB.json")
    assert rpc is not None
    np.testing.assert_allclose(
        rpc.project(-81.6637, 30.3487, -20.0), other.project(-81.6637, 30.3487, -20.0), atol=1e-6
    )
