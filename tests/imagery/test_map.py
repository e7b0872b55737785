"""On the map: against scenes rendered from known ground coordinates, and against the lidar."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from geopose.data.heights import read_agl_m
from geopose.errors import InputError
from geopose.imagery.files.raster import create_raster, open_raster
from geopose.imagery.map import parse_ground, utm_crs, warp_to_map
from geopose.imagery.place.flow import sensor_flow
from geopose.imagery.place.georeference import WGS84, Gcp, Georeference, change_crs
from geopose.imagery.place.rpc import Rpc, read_rpc_json
from geopose.imagery.rectify import rectify
from tests.made_up_rpc import LAT, LON, made_up_rpc
from tests.tiny_data import REALDATA

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
UTM21S = "EPSG:32721"
GROUND_M = 62.0
JAX = REALDATA / "jax068_wv3"
# 0 east and north of the made-up scene, so that float32 holds millimetres.
ORIGIN = change_crs(WGS84, UTM21S, np.array(LON), np.array(LAT))


def _write(path: Path, pixels: np.ndarray, place: Georeference, **options) -> Path:  # type: ignore[no-untyped-def]
    height, width = pixels.shape[:2]
    count = pixels.shape[2] if pixels.ndim == 3 else 1
    options.setdefault("nodata", np.nan if pixels.dtype.kind == "f" else None)
    options["georeference"] = place
    with create_raster(path, height, width, count, pixels.dtype, **options) as out:
        out.write(pixels, 0, 0)
    return path


def _pixel_grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.meshgrid(np.arange(width) * 1.0, np.arange(height) * 1.0))  # type: ignore[return-value]


def _ground_scene(place: Georeference, heights: np.ndarray | float, bands: int) -> np.ndarray:
    """An image (400 x 300) whose pixels say where their ground lies: metres east and north."""
    lon, lat = place.to_lonlat(*_pixel_grid(400, 300), heights)
    east, north = change_crs(WGS84, UTM21S, lon, lat)
    scene = np.stack([east - ORIGIN[0], north - ORIGIN[1], east * 0.0], axis=-1)[..., :bands]
    return np.ascontiguousarray(scene.astype(np.float32))


def _check_map(
    path: Path, place: Georeference, height: np.ndarray | float, within_px: float
) -> None:
    """Every pixel of the map holds what the image shows at its own place, to this many pixels."""
    with open_raster(path) as image:
        values, valid = image.read(), image.valid()
        x, y = image.georeference.to_map(*_pixel_grid(image.width, image.height))
        crs = image.georeference.crs or ""
    inside = place.from_lonlat(*change_crs(crs, WGS84, x, y), height)
    core = (inside[0] > 0) & (inside[0] < 399) & (inside[1] > 0) & (inside[1] < 299)
    beyond = (inside[0] < -1) | (inside[0] > 400) | (inside[1] < -1) | (inside[1] > 300)
    assert core.sum() > 50_000
    assert valid[core].all()
    assert not valid[beyond].any()
    east, north = values[..., 0] + ORIGIN[0], values[..., 1] + ORIGIN[1]
    shown = place.from_lonlat(*change_crs(UTM21S, WGS84, east, north), height)
    for there, here in zip(shown, inside, strict=True):
        assert np.abs(there - here)[core].max() < within_px


@pytest.mark.parametrize("crs", ["utm", "EPSG:4326", "EPSG:32721"])
def test_a_scene_by_rpcs_is_right_to_half_a_pixel(tmp_path: Path, crs: str) -> None:
    place = Georeference(rpc=made_up_rpc(bend=1e-3))
    scene = _write(tmp_path / "a.tif", _ground_scene(place, GROUND_M, 2), place)
    with open_raster(scene) as image:
        warp_to_map(image, tmp_path / "map.tif", crs, GROUND_M)
    _check_map(tmp_path / "map.tif", place, GROUND_M, 0.502)  # nearest pixel: half of one at most
    colours = _write(tmp_path / "b.tif", _ground_scene(place, GROUND_M, 3), place)
    with open_raster(colours) as image:
        warp_to_map(image, tmp_path / "map3.tif", crs, GROUND_M)
        with pytest.raises(InputError, match="height of the ground"):
            warp_to_map(image, tmp_path / "no.tif", crs)
    _check_map(tmp_path / "map3.tif", place, GROUND_M, 0.01)  # bilinear
    with open_raster(tmp_path / "map3.tif") as image:
        assert image.georeference.kind == "transform"
        assert image.georeference.rpc is None


def test_height_zero_would_be_wrong_by_the_lean(tmp_path: Path) -> None:
    place = Georeference(rpc=made_up_rpc())
    scene = _write(tmp_path / "a.tif", _ground_scene(place, GROUND_M, 2), place)
    with open_raster(scene) as image:
        warp_to_map(image, tmp_path / "map.tif", "utm", 0.0)
    with pytest.raises(AssertionError):
        _check_map(tmp_path / "map.tif", place, GROUND_M, 20.0)


def _hills(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    return 40.0 + 15.0 * np.sin((lon - LON) * 4000.0) + 10.0 * np.cos((lat - LAT) * 5000.0)


def _lines_of_sight_on_hills(rpc: Rpc) -> np.ndarray:
    height = np.full((300, 400), 40.0)
    for _ in range(6):
        height = _hills(*rpc.localize(*_pixel_grid(400, 300), height))
    return height


def test_a_height_model_is_followed_pixel_by_pixel(tmp_path: Path) -> None:
    place = Georeference(rpc=made_up_rpc(bend=1e-3))
    assert place.rpc is not None
    scene = _ground_scene(place, _lines_of_sight_on_hills(place.rpc), 3)
    step = 1e-5
    dem_place = Georeference(WGS84, (step, 0.0, LON - 0.004, 0.0, -step, LAT + 0.004))
    lon, lat = dem_place.to_map(*_pixel_grid(800, 800))
    dem = _write(tmp_path / "dem.tif", _hills(lon, lat).astype(np.float32), dem_place)
    with open_raster(_write(tmp_path / "a.tif", scene, place)) as image:
        warp_to_map(image, tmp_path / "map.tif", "utm", dem)
    with open_raster(tmp_path / "map.tif") as image:
        x, y = image.georeference.to_map(*_pixel_grid(image.width, image.height))
    height = _hills(*change_crs(UTM21S, WGS84, x, y))
    _check_map(tmp_path / "map.tif", place, height, 0.1)
    elsewhere = Georeference(WGS84, (step, 0.0, 9.0, 0.0, -step, 9.0))
    far = _write(tmp_path / "far.tif", np.ones((9, 9), np.float32), elsewhere)
    with open_raster(tmp_path / "a.tif") as image, pytest.raises(InputError, match="unknown"):
        warp_to_map(image, tmp_path / "no.tif", "utm", far)


@pytest.mark.parametrize("kind", ["rotated", "south-up", "gcps"])
def test_a_scene_by_transform_or_gcps_is_right_to_half_a_pixel(tmp_path: Path, kind: str) -> None:
    x0, y0 = float(ORIGIN[0]), float(ORIGIN[1])
    place = Georeference(UTM21S, (0.4, 0.3, x0 - 120, 0.3, -0.4, y0))
    if kind == "south-up":
        place = Georeference(UTM21S, (0.5, 0.0, x0 - 100, 0.0, 0.5, y0 - 75))
    if kind == "gcps":
        corners = [(c, r) for c in (0.0, 399.0) for r in (0.0, 299.0)]
        maps = [place.to_map(np.array(c), np.array(r)) for c, r in corners]
        points = (Gcp(*pixel, *map(float, at)) for pixel, at in zip(corners, maps, strict=True))
        place = Georeference(UTM21S, None, tuple(points))
    scene = _write(tmp_path / "a.tif", _ground_scene(place, 0.0, 2), place)
    with open_raster(scene) as image:
        warp_to_map(image, tmp_path / "map.tif")
    _check_map(tmp_path / "map.tif", place, 0.0, 0.502)


def test_no_data_is_neither_smeared_nor_taken_for_black(tmp_path: Path) -> None:
    place = Georeference(rpc=made_up_rpc())
    heights = np.full((300, 400), 12.5, np.float32)
    heights[100:200, 150:250] = np.nan
    with open_raster(_write(tmp_path / "a.tif", heights, place, units=["metre"])) as image:
        warp_to_map(image, tmp_path / "map.tif", "utm", GROUND_M)
    with open_raster(tmp_path / "map.tif") as image:
        assert set(np.unique(image.read()[image.valid()]).tolist()) == {12.5}
        assert image.units == ("metre",)
    rgb = np.zeros((300, 400, 3), np.uint8)
    with create_raster(tmp_path / "b.tif", 300, 400, 3, "u1", mask=True, georeference=place) as out:
        known = np.ones((300, 400), bool)
        known[50:60] = False
        rgb[~known] = 255  # whatever lies below the mask must not shine through
        out.write(rgb, 0, 0, known)
    with open_raster(tmp_path / "b.tif") as image:
        warp_to_map(image, tmp_path / "map.tif", "utm", GROUND_M)
    with open_raster(tmp_path / "map.tif") as image:
        assert not image.read()[image.valid()].any()
        assert 0.3 < image.valid().mean() < 0.9


def test_resolution_snaps_to_one_grid_and_a_coarse_map_is_small(tmp_path: Path) -> None:
    place = Georeference(rpc=made_up_rpc())
    with open_raster(_write(tmp_path / "a.tif", _ground_scene(place, GROUND_M, 2), place)) as image:
        warp_to_map(image, tmp_path / "map.tif", "utm", GROUND_M, 5.0)
        with pytest.raises(InputError, match="larger resolution"):
            warp_to_map(image, tmp_path / "no.tif", "utm", GROUND_M, 1e-5)
        with pytest.raises(InputError, match="EPSG:n"):
            warp_to_map(image, tmp_path / "no.tif", "EPSG:99", GROUND_M)
    with open_raster(tmp_path / "map.tif") as image:
        transform = image.georeference.transform
        assert image.height < 60
    assert transform is not None
    assert (transform[0], transform[2] % 5.0, transform[5] % 5.0) == (5.0, 0.0, 0.0)


def test_options_and_zones() -> None:
    assert parse_ground("-20.5") == -20.5
    assert parse_ground("dem.tif") == Path("dem.tif")
    with pytest.raises(InputError, match="ground height"):
        parse_ground("nan")
    assert utm_crs(-81.66, 30.3) == "EPSG:32617"
    assert utm_crs(LON, LAT) == UTM21S
    assert utm_crs(180.0, 1.0) == "EPSG:32601"


def test_an_image_without_a_place_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.ones((9, 9), np.float32), Georeference())
    with open_raster(path) as image, pytest.raises(InputError, match="nothing of its place"):
        warp_to_map(image, tmp_path / "no.tif")


@pytest.mark.skipif(not JAX.exists(), reason="../shared/realdata is absent")
@pytest.mark.parametrize("view", ["001", "010", "014"])
def test_rectified_real_heights_lie_where_the_lidar_has_them(tmp_path: Path, view: str) -> None:
    """Of all places within a metre the lidar's heights match best, to half a pixel, unmoved."""
    words = (JAX / "truth/JAX_068_DSM.txt").read_text().split()
    left, bottom, size, side = (float(word) for word in words)
    with open_raster(JAX / "truth/JAX_068_DSM.tif") as image:
        surface = image.read().astype(np.float64)
    with open_raster(JAX / "truth/JAX_068_CLS.tif") as image:
        ground = (image.read() == 2).astype(np.float64)
    weights = ndimage.gaussian_filter(ground, 20)
    terrain = ndimage.gaussian_filter(surface * ground, 20) / np.maximum(weights, 1e-6)
    terrain[weights < 0.01] = np.median(surface[ground > 0])
    # The true heights were made with the lidar moved by 0.6 m: see SOURCE.txt.
    place = Georeference("EPSG:32617", (side, 0.0, left, 0.0, -side, bottom + size * side - 0.6))
    dem = _write(tmp_path / "dem.tif", terrain.astype(np.float32), place)
    view_place = Georeference(rpc=read_rpc_json(JAX / f"rpc_ba/JAX_068_{view}_RGB.json"))
    agl_m = read_agl_m(JAX / f"train/JAX_068{view}_AGL.tif")
    flow = sensor_flow(view_place, *agl_m.shape, -21.0)
    rectified = rectify(agl_m, flow.scale_px_per_m, flow.angle_rad).agl_m
    with open_raster(_write(tmp_path / "a.tif", rectified, view_place)) as image:
        warp_to_map(image, tmp_path / "map.tif", "EPSG:32617", dem, 0.5)
    with open_raster(tmp_path / "map.tif") as image:
        on_map = image.read().astype(np.float64)
        column, row = place.from_map(*image.georeference.to_map(*_pixel_grid(*on_map.shape[::-1])))
    true_m = surface - terrain

    def lidar(east_m: float, north_m: float) -> np.ndarray:
        at = [row - north_m / side, column + east_m / side]
        return ndimage.map_coordinates(true_m, at, order=1, cval=np.nan)

    near = ndimage.maximum_filter(np.nan_to_num(lidar(0, 0)), 9) > 4  # walls tell the place

    def misfit(east_m: float, north_m: float) -> float:
        error = (on_map - lidar(east_m, north_m))[near]
        return float(np.minimum(np.abs(error[np.isfinite(error)]), 3.0).mean())

    steps = np.arange(-1.0, 1.01, 0.25)
    half_a_pixel_m = flow.gsd_m / 2
    for misfits in ([misfit(s, 0.0) for s in steps], [misfit(0.0, s) for s in steps]):
        best = int(np.argmin(misfits))
        before, at, after = misfits[best - 1 : best + 2]
        lowest = steps[best] + 0.125 * (before - after) / (before - 2 * at + after)
        assert abs(lowest) < half_a_pixel_m
