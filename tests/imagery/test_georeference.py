"""Where an image lies: crops and zooms keep it, useless transforms are none, there and back."""

from pathlib import Path

import numpy as np
import pytest

from geopose.errors import InputError
from geopose.imagery.files.raster import open_raster
from geopose.imagery.place import gdal
from geopose.imagery.place.georeference import WGS84, Gcp, Georeference, change_crs, parse_crs
from tests.made_up_rpc import made_up_rpc

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
UTM = "EPSG:32617"
TURNED = Georeference(UTM, (0.4, 0.3, 436078.0, 0.3, -0.4, 3357751.0))
POINTS = tuple(
    Gcp(c, r, *map(float, TURNED.to_map(np.array(c), np.array(r))))
    for c, r in ((0.0, 0.0), (300.0, 0.0), (0.0, 200.0), (300.0, 200.0))
)
PLACES = {
    "transform": TURNED,
    "gcps": Georeference(UTM, None, POINTS),
    "rpc": Georeference(rpc=made_up_rpc(bend=1e-3)),
}


@pytest.mark.parametrize("kind", PLACES)
def test_there_and_back(kind: str) -> None:
    place = PLACES[kind]
    assert place.kind == kind
    column, row = np.meshgrid(np.linspace(-0.5, 300, 7), np.linspace(-0.5, 200, 5))
    back = place.from_lonlat(*place.to_lonlat(column, row, 12.0), 12.0)
    np.testing.assert_allclose(back, (column, row), atol=1e-4)


@pytest.mark.parametrize("kind", PLACES)
def test_crops_and_zooms_show_the_same_ground(kind: str) -> None:
    place = PLACES[kind]
    here = place.to_lonlat(40.0, 30.0, 50.0)
    np.testing.assert_allclose(place.cropped(10, 5).to_lonlat(30.0, 25.0, 50.0), here, atol=1e-9)
    # A pixel halved: 40 becomes 80 and 81, and the old centre lies between them.
    np.testing.assert_allclose(place.scaled(2.0).to_lonlat(80.5, 60.5, 50.0), here, atol=1e-9)
    zoomed = place.scaled(2.0, 0.5).to_lonlat(80.5, 14.75, 50.0)
    np.testing.assert_allclose(zoomed, here, atol=1e-9)


def test_rasterio_agrees_on_where_a_pixels_centre_is() -> None:
    assert TURNED.transform is not None
    transform = rasterio.Affine(*TURNED.transform)
    x, y = rasterio.transform.xy(transform, 7, 3)
    np.testing.assert_allclose(TURNED.to_map(np.array(3.0), np.array(7.0)), (x, y))


def _file(path: Path, **said) -> Path:  # type: ignore[no-untyped-def]
    options = {"driver": "GTiff", "width": 9, "height": 8, "count": 1, "dtype": "uint8"}
    rpcs = said.pop("rpcs", None)
    with gdal.quiet(), rasterio.open(path, "w", **options, **said) as dataset:
        dataset.write(np.zeros((1, 8, 9), np.uint8))
        if rpcs is not None:
            dataset.rpcs = rpcs
    return path


def test_a_useless_transform_is_no_georeference(tmp_path: Path) -> None:
    rpcs = rasterio.rpc.RPC(**made_up_rpc().to_gdal())
    flipped = rasterio.Affine(1.0, 0.0, 0.5, 0.0, -1.0, -0.5)
    for transform in (None, rasterio.Affine.identity(), flipped):
        said = {} if transform is None else {"transform": transform}
        with open_raster(_file(tmp_path / "a.tif", rpcs=rpcs, **said)) as image:
            assert image.georeference.kind == "rpc"
            assert image.georeference.transform is None
            assert image.georeference.crs is None
    with open_raster(_file(tmp_path / "b.tif", crs=UTM)) as image:
        assert image.georeference == Georeference()
    both = rasterio.Affine(0.5, 0, 436000, 0, -0.5, 3358000)
    with open_raster(_file(tmp_path / "c.tif", crs=UTM, transform=both, rpcs=rpcs)) as image:
        assert image.georeference.kind == "rpc"  # it knows of heights; the other is kept too
        assert image.georeference.transform == tuple(both)[:6]


def test_a_transform_without_a_crs_is_kept_but_places_nothing(tmp_path: Path) -> None:
    world = rasterio.Affine(0.5, 0, 436000, 0, -0.5, 3358000)
    with open_raster(_file(tmp_path / "a.tif", transform=world)) as image:
        place = image.georeference
    assert place.transform == tuple(world)[:6]
    assert place.kind == "none"
    with pytest.raises(InputError, match="nothing of its place"):
        place.to_lonlat(0.0, 0.0, 0.0)


def test_another_planet_is_said_in_one_line() -> None:
    mars = (
        'GEOGCS["GCS_MARS",DATUM["D_MARS",SPHEROID["MARS",3396190,169.89]],'
        'PRIMEM["Reference_Meridian",0],UNIT["degree",0.0174532925199433]]'
    )
    with pytest.raises(
        InputError, match="coordinates of GCS_MARS have no counterpart in EPSG:4326"
    ):
        change_crs(mars, WGS84, np.array(1.0), np.array(2.0))


def test_coordinates_change_with_any_shape_and_unknown_ones_stay_unknown() -> None:
    lon = np.array([[-81.0, np.nan], [-80.0, -81.5]])
    x, y = change_crs(WGS84, UTM, lon, np.full((2, 2), 30.0))
    assert x.shape == (2, 2)
    assert x[0, 0] == pytest.approx(500_000)
    assert np.isnan(x[0, 1])
    assert np.isnan(y[0, 1])
    with pytest.raises(InputError, match="unknown"):
        parse_crs("EPSG:1")


def test_without_rasterio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdal, "find_rasterio", lambda: None)
    with pytest.raises(InputError, match=r'needs rasterio: pip install "geopose\[geo\]"'):
        TURNED.to_lonlat(0.0, 0.0, 0.0)
