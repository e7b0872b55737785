"""Rectified real views against the lidar of their site, and against each other."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from geopose.data.heights import read_agl_m
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.imagery.place.georeference import WGS84, change_crs
from geopose.imagery.place.rpc import read_rpc_json
from geopose.imagery.rectify import SEEN, rectify
from tests.tiny_data import REALDATA

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("rasterio", reason="rasterio is not installed")
JAX = REALDATA / "jax068_wv3"
pytestmark = pytest.mark.skipif(not JAX.is_dir(), reason="../shared/realdata is not here")
VIEWS = ("001", "003", "005", "007", "010", "012", "014", "016", "019")
BUILDING, GROUND = 6, 2


@dataclass(frozen=True)
class Lidar:
    """The site on cells of 0.5 m: n x n each."""

    agl_m: NDArray
    ground_m: NDArray
    building: NDArray
    x: NDArray
    y: NDArray

    def pixels(self, view: str, height_m: NDArray, north_m: float) -> tuple[NDArray, NDArray]:
        """(row, column) of cells at ellipsoidal heights, the lidar moved to the north."""
        lon, lat = change_crs("EPSG:32617", WGS84, self.x, self.y + north_m)
        rpc = read_rpc_json(JAX / f"rpc_ba/JAX_068_{view}_RGB.json")
        column, row = (np.rint(axis).astype(int) for axis in rpc.project(lon, lat, height_m))
        return row, column


@pytest.fixture(scope="module")
def lidar() -> Lidar:
    """Heights above the ground model with which the views' heights were made.

    Ground cells smoothed by 4 m where there are some, by 20 m elsewhere, then both by 2 m: where a
    view's heights are snapped to the lidar's roofs, lidar minus height is that model to 1 cm.
    """
    dsm = tifffile.imread(JAX / "truth/JAX_068_DSM.tif").astype(float)
    classes = tifffile.imread(JAX / "truth/JAX_068_CLS.tif")
    x0, y0, size, side = (float(v) for v in (JAX / "truth/JAX_068_DSM.txt").read_text().split())

    def smooth(cells: float) -> tuple[NDArray, NDArray]:
        share = ndimage.gaussian_filter((classes == GROUND).astype(float), cells)
        total = ndimage.gaussian_filter(np.where(classes == GROUND, dsm, 0.0), cells)
        return total / np.maximum(share, 1e-12), share

    near, share = smooth(8)
    ground = ndimage.gaussian_filter(np.where(share > 0.05, near, smooth(40)[0]), 4)
    row, column = np.mgrid[: int(size), : int(size)]
    agl_m = dsm - ground
    building = (classes == BUILDING) & (agl_m > 3.0)
    x, y = x0 + (column + 0.5) * side, y0 + (size - row - 0.5) * side
    return Lidar(agl_m, ground, building, x, y)


def _at(array: NDArray, row: NDArray, column: NDArray) -> tuple[NDArray, NDArray]:
    """(values at pixels, NaN outside; which are inside)."""
    inside = (row >= 0) & (row < array.shape[0]) & (column >= 0) & (column < array.shape[1])
    return np.where(inside, array[np.where(inside, row, 0), np.where(inside, column, 0)], np.nan), (
        inside
    )


def test_buildings_stand_where_the_lidar_has_them(lidar: Lidar) -> None:
    """The views' heights were made from the lidar moved by 0.6 m, their own misregistration.

    So they are checked against the lidar as it lies, as a user has it, and moved as well.
    """
    building = lidar.building
    in_image, known_share = [], []
    for view in VIEWS:
        name = f"{JAX}/train/JAX_068{view}"
        agl_m, flow = read_agl_m(f"{name}_AGL.tif"), read_vflow(f"{name}_VFLOW.json")
        result = rectify(agl_m, *flow)
        for north_m, most_m in ((0.0, 0.35), (-0.6, 0.15)):
            at = lidar.pixels(view, lidar.ground_m, north_m)
            (placed, inside), (raw, _) = _at(result.agl_m, *at), _at(agl_m, *at)
            error = np.abs(placed - lidar.agl_m)[building]
            assert np.nanmean(error) < most_m
            assert np.nanmean(np.abs(raw - lidar.agl_m)[building]) > 6 * np.nanmean(error)
        roof = _at(agl_m, *lidar.pixels(view, lidar.ground_m + lidar.agl_m, -0.6))[0]
        seen = building & (np.abs(roof - lidar.agl_m) < 0.5)  # the view shows this cell's roof
        assert (~np.isnan(placed))[seen].mean() > 0.98
        in_image.append((~np.isnan(placed))[building & inside].mean())
        known_share.append((~np.isnan(placed))[building & ~np.isnan(raw)].mean())
    assert np.mean(in_image) > 0.885
    assert np.mean(known_share) > 0.915


def test_views_from_opposite_sides_agree_better_rectified(lidar: Lidar) -> None:
    grey = {}
    for view in ("010", "012", "007"):
        name = f"{JAX}/train/JAX_068{view}"
        rgb = read_rgb(f"{name}_RGB.tif")
        agl_m, flow = read_agl_m(f"{name}_AGL.tif"), read_vflow(f"{name}_VFLOW.json")
        result = rectify(agl_m, *flow, rgb)
        assert result.rgb is not None
        seen = np.where(result.occlusion == SEEN, result.rgb.mean(axis=2), np.nan)
        at = lidar.pixels(view, lidar.ground_m, -0.6)
        grey[view] = [_at(a, *at)[0] for a in (rgb.mean(axis=2), seen)]
    for first, second in (("010", "012"), ("007", "012")):
        both = ~np.isnan(grey[first][1]) & ~np.isnan(grey[second][1])
        before, after = (
            np.corrcoef(grey[first][i][both], grey[second][i][both])[0, 1] for i in (0, 1)
        )
        assert after > before + 0.15
