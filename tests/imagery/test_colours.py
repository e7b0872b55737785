"""Bands and stretch of any image: once for all of it, over what is data."""

import numpy as np
import pytest
import rasterio
import tifffile

from geopose.errors import InputError
from geopose.imagery.colours import Colours, StretchChoice, parse_bands, parse_stretch
from geopose.imagery.files.raster import open_raster

ALL = slice(None)


def tiff(path, array, **profile):
    """H x W x C to a GeoTIFF by rasterio."""
    height, width, count = array.shape
    options = {"driver": "GTiff", "height": height, "width": width, "count": count}
    with rasterio.open(path, "w", dtype=array.dtype.name, **options, **profile) as dataset:
        dataset.write(np.moveaxis(array, -1, 0))
    return path


def rgb_of(path, window=(ALL, ALL), **choice):
    with open_raster(path) as raster:
        colours = Colours.of(raster, **choice)
        whole = tuple(slice(*s.indices(n)[:2]) for s, n in zip(window, raster.shape, strict=True))
        return (*colours.read(raster, whole), colours)


def ramp(bands, top=1000, dtype=np.uint16):
    """64 x 50 pixels; band b counts from 100 b on."""
    values = np.linspace(0, top, 64 * 50).reshape(64, 50)
    return np.stack([values + 100 * band for band in range(bands)], axis=-1).astype(dtype)


def test_eight_bits_are_taken_as_they_are(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 50, 3), np.uint8)
    rgb, valid, colours = rgb_of(tiff(tmp_path / "a.tif", image))
    np.testing.assert_array_equal(rgb, image)
    assert valid.all()
    assert "as stored" in colours.words


def test_a_window_has_the_stretch_of_the_whole_image(tmp_path):
    path = tiff(tmp_path / "a.tif", ramp(3))
    whole, _, _ = rgb_of(path)
    part, _, _ = rgb_of(path, (slice(10, 20), slice(5, 30)))
    np.testing.assert_array_equal(part, whole[10:20, 5:30])
    assert whole.min() == 0
    assert whole.max() == 255


def test_no_data_has_no_share_in_the_stretch(tmp_path):
    image = ramp(3)
    image[:40] = 60000
    path = tiff(tmp_path / "a.tif", image, nodata=60000)
    rgb, valid, colours = rgb_of(path, stretch=StretchChoice("percent", 0, 100))
    assert not valid[:40].any()
    assert valid[40:].all()
    assert (rgb[:40] == 0).all()
    assert rgb[63, 49].tolist() == [255, 255, 255]
    assert colours.limits[0][1] == pytest.approx(1000)


def test_infinite_and_unknown_floats_have_none_either(tmp_path):
    image = ramp(3, dtype=np.float32)
    image[0, :10] = np.nan
    image[1, :10] = np.inf
    rgb, valid, colours = rgb_of(tiff(tmp_path / "a.tif", image))
    assert np.isfinite(colours.limits).all()
    assert not valid[0, :10].any()
    assert (rgb[1, :10] == 255).all()


def test_black_is_data(tmp_path):
    image = np.zeros((64, 50, 3), np.uint8)
    image[:, 25:] = 90
    _, valid, _ = rgb_of(tiff(tmp_path / "a.tif", image))
    assert valid.all()
    _, valid, _ = rgb_of(tmp_path / "a.tif", nodata=0)
    assert not valid[:, :25].any()
    assert valid[:, 25:].all()


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (0, 0, 0)), (3, (0, 1, 2)), (4, (0, 1, 2)), (8, (4, 2, 1))]
)
def test_bands_by_their_number(tmp_path, count, expected):
    path = tiff(tmp_path / "a.tif", ramp(count), photometric="minisblack")
    assert rgb_of(path)[2].bands == expected


def test_bands_by_their_names(tmp_path):
    path = tiff(tmp_path / "a.tif", ramp(4), photometric="minisblack")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("Blue", "Green", "Red", "NIR")
    assert rgb_of(path)[2].bands == (2, 1, 0)


def test_bands_as_given(tmp_path):
    path = tiff(tmp_path / "a.tif", ramp(4), photometric="minisblack")
    assert rgb_of(path, bands=(4, 3, 2))[2].bands == (3, 2, 1)
    assert rgb_of(path, bands=(2,))[2].bands == (1, 1, 1)
    with pytest.raises(InputError, match=r"a.tif: --bands 5,3,2, but it has 4 bands"):
        rgb_of(path, bands=(5, 3, 2))


def test_a_number_of_bands_that_says_nothing(tmp_path):
    path = tiff(tmp_path / "a.tif", ramp(5), photometric="minisblack")
    with pytest.raises(InputError, match="5 bands; say which are red, green, blue: --bands R,G,B"):
        rgb_of(path)


def test_values_and_none(tmp_path):
    path = tiff(tmp_path / "a.tif", ramp(3))
    rgb, _, _ = rgb_of(path, stretch=parse_stretch("0:500"))
    assert rgb[40:, :, 0].min() == 255
    with pytest.raises(InputError, match="pixels of uint16 need a stretch"):
        rgb_of(path, stretch=parse_stretch("none"))


def test_an_image_without_data(tmp_path):
    path = tiff(tmp_path / "a.tif", np.zeros((64, 50, 3), np.uint16), nodata=0)
    with pytest.raises(InputError, match="no pixel of it is data"):
        rgb_of(path)


def test_data_in_one_corner_of_a_large_image_is_found(tmp_path):
    path = tmp_path / "a.tif"
    options = {"driver": "GTiff", "height": 9000, "width": 9000, "count": 3, "nodata": 0}
    with rasterio.open(path, "w", dtype="uint16", sparse_ok=True, tiled=True, **options) as dataset:
        window = rasterio.windows.Window(300, 8900, 60, 60)
        dataset.write(np.full((3, 60, 60), 700, np.uint16), window=window)
    with open_raster(path) as raster:
        assert Colours.of(raster).limits[0][0] == 700


def test_a_plain_tiff_with_alpha(tmp_path):
    image = np.full((32, 32, 4), 200, np.uint8)
    image[:16, :, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["unassalpha"])
    _, valid, colours = rgb_of(tmp_path / "a.tif")
    assert colours.bands == (0, 1, 2)
    assert not valid[:16].any()
    assert valid[16:].all()


@pytest.mark.parametrize("text", ["", "a", "5,2", "2,98,99", "-1,50", "0,101", "nan,50", "7:7"])
def test_bad_stretches(text):
    with pytest.raises(InputError, match="--stretch"):
        parse_stretch(text)


@pytest.mark.parametrize("text", ["", "1,2", "0,1,2", "1,2,x", "-1,2,3", "1.0,2,3"])
def test_bad_bands(text):
    with pytest.raises(InputError, match="--bands"):
        parse_bands(text)
