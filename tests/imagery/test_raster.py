"""Rasters of any kind: windows in and out, validity, and files that GIS opens."""

import contextlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from geopose.data.heights import write_agl_cm
from geopose.data.rgb import write_j2k, write_png
from geopose.errors import InputError, RunError
from geopose.imagery.files import raster, raster_writer
from geopose.imagery.files.raster import create_raster, open_raster, windows
from geopose.imagery.place.georeference import Gcp, Georeference
from tests.made_up_rpc import made_up_rpc
from tests.programs import ROOT
from tests.tiny_data import REALDATA, smooth_rgb

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
GCPS = (Gcp(0, 0, 4e5, 3e6, 5), Gcp(9, 0, 4.1e5, 3e6), Gcp(0, 7, 4e5, 2e6))
UTM = Georeference("EPSG:32617", (0.5, 0.0, 436078.0, 0.0, -0.5, 3357751.0))


@pytest.fixture
def without_rasterio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "find_rasterio", lambda: None)
    monkeypatch.setattr(raster_writer, "find_rasterio", lambda: None)


def _write(path: Path, array: np.ndarray, **options) -> Path:  # type: ignore[no-untyped-def]
    count = array.shape[2] if array.ndim == 3 else 1
    valid = options.pop("valid", None)
    with create_raster(path, *array.shape[:2], count, array.dtype, **options) as out:
        for rows, columns in windows(*array.shape[:2], 300):
            known = None if valid is None else valid[rows, columns]
            out.write(array[rows, columns], rows.start, columns.start, known)
    return path


def _ramp(height: int = 700, width: int = 1100) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows * 0.01 + columns * 0.02).astype(np.float32)


@pytest.mark.filterwarnings("error")
def test_heights_come_back_with_all_that_was_said_of_them(tmp_path: Path) -> None:
    heights = _ramp()
    heights[100:300, 200:500] = np.nan
    path = _write(
        tmp_path / "a_AGL.tif", heights, nodata=np.nan, georeference=UTM,
        descriptions=["height above ground"], units=["metre"], tags={"SOURCE": "a test"},
    )  # fmt: skip
    with open_raster(path) as image:
        assert (image.height, image.width, image.count, image.dtype) == (700, 1100, 1, np.float32)
        assert image.nodata is not None
        assert np.isnan(image.nodata)
        assert image.descriptions == ("height above ground",)
        assert image.units == ("metre",)
        assert image.georeference.transform == UTM.transform
        np.testing.assert_array_equal(image.read(), heights)
        window = slice(90, 310), slice(1000, 5000)
        np.testing.assert_array_equal(image.read(*window), heights[window])
        np.testing.assert_array_equal(image.valid(*window), ~np.isnan(heights[window]))
        np.testing.assert_array_equal(image.valid(), ~np.isnan(heights))
    with rasterio.open(path) as dataset:
        assert dataset.tags()["SOURCE"] == "a test"
        band = dataset.tags(1)
        assert float(band["STATISTICS_MAXIMUM"]) == pytest.approx(float(np.nanmax(heights)))
        assert float(band["STATISTICS_VALID_PERCENT"]) == pytest.approx(92.21, abs=0.01)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert dataset.crs.to_epsg() == 32617
    assert [p.name for p in tmp_path.iterdir()] == ["a_AGL.tif"]


def test_it_is_a_valid_cloud_optimised_geotiff(tmp_path: Path) -> None:
    cogeo = pytest.importorskip("rio_cogeo.cogeo", reason="rio-cogeo is not installed")
    path = _write(tmp_path / "a.tif", _ramp(), nodata=np.nan, georeference=UTM)
    valid, problems, notes = cogeo.cog_validate(path, strict=True, quiet=True)
    assert (valid, problems, notes) == (True, [], [])
    rgb = _write(tmp_path / "b.tif", smooth_rgb(600, 1300), mask=True)
    assert cogeo.cog_validate(rgb, strict=True, quiet=True)[0]


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("float32", np.nan), ("float32", -9999), ("uint16", 65535)]
)
def test_no_data_has_no_share_in_overviews(tmp_path: Path, dtype: str, nodata: float) -> None:
    heights = np.full((1024, 1100), 20, dtype)
    heights[::2] = nodata
    path = _write(tmp_path / "a.tif", heights, nodata=nodata)
    with rasterio.open(path) as dataset:
        factors = dataset.overviews(1)
        assert factors
    for level in range(len(factors)):
        with rasterio.open(path, overview_level=level) as overview:
            assert np.unique(overview.read(1)).tolist() == [20]


def test_classes_stay_classes_in_overviews(tmp_path: Path) -> None:
    classes = np.zeros((1024, 1024), np.uint8)
    classes[:, 3:] = 200
    classes[:, 100:] = 255
    path = _write(tmp_path / "a.tif", classes, nodata=255, categories=True)
    with rasterio.open(path, overview_level=0) as overview:
        assert set(np.unique(overview.read(1)).tolist()) <= {0, 200, 255}


def test_a_black_pixel_is_data_and_a_hole_is_not(tmp_path: Path) -> None:
    rgb = smooth_rgb(640, 700)
    rgb[:50] = 0
    valid = np.ones((640, 700), bool)
    valid[300:400, 100:600] = False
    rgb[~valid] = 0
    path = _write(tmp_path / "a_RGB.tif", rgb, mask=True, valid=valid)
    with open_raster(path) as image:
        assert image.count == 3
        assert image.nodata is None
        np.testing.assert_array_equal(image.read(), rgb)
        np.testing.assert_array_equal(image.valid(), valid)
    with rasterio.open(path, overview_level=0) as overview:
        inner = overview.read()[:, 151:199, 51:299]
        assert not overview.dataset_mask()[151:199, 51:299].any()
        assert inner.shape[0] == 3
    png = tmp_path / "b.png"
    write_png(png, rgb)
    with open_raster(png) as image:
        assert image.valid().all()


def test_alpha_and_stated_zero_are_believed(tmp_path: Path) -> None:
    rgba = np.dstack([smooth_rgb(40, 30), np.full((40, 30), 255, np.uint8)])
    rgba[5:9, 3:20, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    with open_raster(tmp_path / "a.tif") as image:
        assert image.count == 3
        np.testing.assert_array_equal(image.read(), rgba[..., :3])
        np.testing.assert_array_equal(image.valid(), rgba[..., 3] > 0)
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4)
    path = _write(tmp_path / "b.tif", grey, nodata=0)
    with open_raster(path) as image:
        assert image.valid().tolist() == (grey > 0).tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "place",
    [
        UTM,
        Georeference("EPSG:4326", (1e-5, 2e-6, -58.6, 3e-6, 1e-5, -34.5)),
        Georeference("EPSG:32617", None, GCPS),
        Georeference(rpc=made_up_rpc()),
        Georeference(),
    ],
    ids=["transform", "south-up", "gcps", "rpc", "none"],
)  # fmt: skip
def test_every_kind_of_place_is_carried_along(tmp_path: Path, place: Georeference) -> None:
    first = _write(tmp_path / "a.tif", _ramp(600, 800), nodata=np.nan, georeference=place)
    with open_raster(first) as image:
        again = _write(tmp_path / "b.tif", image.read(), georeference=image.georeference)
    with open_raster(again) as image:
        got = image.georeference
    assert got.kind == place.kind
    assert got.transform == place.transform
    np.testing.assert_allclose(np.array(got.gcps), np.array(place.gcps))
    if place.rpc is not None and got.rpc is not None:
        for part in ("coefficients", "offsets", "scales"):  # GDAL hands on 15 digits
            wanted = getattr(place.rpc, part)
            np.testing.assert_allclose(getattr(got.rpc, part), wanted, rtol=1e-14, atol=1e-20)


def test_nothing_known_at_all_is_written_too(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tif", np.full((600, 600), np.nan, np.float32), nodata=np.nan)
    with open_raster(path) as image:
        assert not image.valid().any()


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), create_raster(tmp_path / "a.tif", 9, 9, 1, "u1") as out:
        out.write(np.zeros((9, 9), np.uint8), 1 // 0, 0)
    with (
        pytest.raises(ValueError, match="not inside"),
        create_raster(tmp_path / "a.tif", 9, 9, 1, "u1") as out,
    ):
        out.write(np.zeros((9, 9), np.uint8), 1, 0)
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(RunError, match="cannot write"),
        create_raster(tmp_path / "no/a.tif", 9, 9, 1, "u1"),
    ):
        pass


def test_broken_and_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check the path"):
        open_raster(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not an image")
    with pytest.raises(InputError, match="not an image"):
        open_raster(tmp_path / "text.tif")
    path = _write(tmp_path / "a.tif", np.random.default_rng(1).random((600, 600), np.float32))
    path.write_bytes(path.read_bytes()[:-400_000])
    with open_raster(path) as image, pytest.raises(InputError, match="broken image"):
        image.read()


@pytest.mark.parametrize("name", ["a.png", "a.j2k", "a.jpg"])
def test_half_a_file_is_not_read_as_if_it_were_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    if name == "a.png":
        write_png(path, noise)
    elif name == "a.j2k":
        write_j2k(path, noise, lossless=True)
    else:
        Image.fromarray(noise).save(path)
    with open_raster(path) as image:
        assert image.read().shape == (300, 400, 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="broken image"), open_raster(path) as image:
        image.read()


def test_png_tiff_and_our_own_files_work_without_rasterio(
    tmp_path: Path, without_rasterio: None
) -> None:
    rgb, heights = smooth_rgb(40, 600), _ramp(530, 600)
    write_png(tmp_path / "a.png", rgb)
    with open_raster(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(image.read(slice(3, 9), slice(500, None)), rgb[3:9, 500:])
        assert image.valid().all()
    write_agl_cm(tmp_path / "a_AGL.tif", heights)
    with open_raster(tmp_path / "a_AGL.tif") as image:
        assert (image.count, image.dtype) == (1, np.uint16)
    heights[:9] = np.nan
    path = _write(tmp_path / "b.tif", heights, nodata=np.nan)
    with open_raster(path) as image:
        np.testing.assert_array_equal(image.read(), heights)
        np.testing.assert_array_equal(image.valid(), ~np.isnan(heights))
    valid = np.ones((40, 600), bool)
    valid[:7] = False
    path = _write(tmp_path / "c.tif", rgb, mask=True, valid=valid)
    with open_raster(path) as image:
        np.testing.assert_array_equal(image.read(), rgb)
        np.testing.assert_array_equal(image.valid(), valid)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read([1, 2, 3]), np.moveaxis(rgb, -1, 0))
    (tmp_path / "x.ntf").write_bytes(b"NITF02.10" + bytes(400))
    with pytest.raises(InputError, match=r'pip install "geopose\[geo\]" \(rasterio\)'):
        open_raster(tmp_path / "x.ntf")


def test_beyond_four_gigabytes_it_is_a_big_tiff(tmp_path: Path) -> None:
    # Of the file on the way; the last one asks GDAL for the same and would take a minute.
    with (
        contextlib.suppress(KeyboardInterrupt),
        create_raster(tmp_path / "a.tif", 34_000, 34_000, 1, "float32", nodata=np.nan) as out,
    ):
        out.write(np.ones((8, 8), np.float32), 33_000, 33_000)
        work = next(p for p in tmp_path.iterdir() if p.stat().st_size)
        assert work.stat().st_size < 10_000_000
        assert work.read_bytes()[:4] == b"II+\0"
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_real_nitf_chips_are_read(recwarn: pytest.WarningsRecorder) -> None:
    path = REALDATA / "wv3_arg_nitf/wv3_20.NTF"
    if not path.exists():
        pytest.skip("../shared/realdata is absent")
    with open_raster(path) as image:
        assert (image.shape, image.count, image.dtype) == ((500, 500), 1, np.uint16)
        assert image.georeference.kind == "rpc"
        assert image.georeference.transform is None
        pixels = image.read()
        assert 255 < pixels.max() < 2048
        assert image.valid().all()
    assert not recwarn.list


def test_nothing_is_said_on_standard_error(tmp_path: Path) -> None:
    path = REALDATA / "jax068_wv3/train/JAX_068001_RGB.tif"
    if not path.exists():
        pytest.skip("../shared/realdata is absent")
    code = (
        "import sys; from geopose.cli import setup_logging; setup_logging()\n"
        "from geopose.imagery.files.raster import create_raster, open_raster\n"
        "with open_raster(sys.argv[1]) as image:\n"
        "    with create_raster(sys.argv[2], 815, 746, 3, 'uint8', mask=True,\n"
        "                       georeference=image.georeference) as out:\n"
        "        out.write(image.read(), 0, 0)\n"
    )
    target = tmp_path / "a.tif"
    run = subprocess.run(
        [sys.executable, "-c", code, path, target], capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    assert run.stderr == ""
    with warnings.catch_warnings(), open_raster(target) as image:
        assert image.georeference.kind == "rpc"
