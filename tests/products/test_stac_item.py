"""The STAC item of an image, against what STAC 1.1 and its extensions demand of one."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopose.imagery.files.raster import open_raster
from geopose.imagery.map import MapLayout
from geopose.imagery.place.flow import map_flow, sensor_direction
from geopose.imagery.place.georeference import Georeference
from geopose.products.predicted import Flow, Flows, PredictedImage
from geopose.products.where import footprint
from geopose.products.write import ProductOptions, write_products
from geopose.words import FROM_MODEL, FROM_RPC
from tests.made_up_rpc import LAT, LON, made_up_rpc
from tests.predicted_images import FLOW, SHAPE, predicted_town
from tests.tiny_data import REALDATA

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
WANTED = frozenset({"agl", "vflow", "rectified", "stac"})
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def _item(image: PredictedImage, out: Path, **options: Any) -> dict[str, Any]:
    done = write_products(image, out, WANTED, ProductOptions(**options))
    item = json.loads(done.files["stac"].read_text(), parse_constant=pytest.fail)
    _check(item, out)
    return item


def _check(item: dict[str, Any], out: Path) -> None:
    """Facts of the item specification (1.1.0), its JSON schema and GeoJSON (RFC 7946)."""
    assert {"type", "stac_version", "id", "geometry", "properties", "links", "assets"} <= set(item)
    assert (item["type"], item["stac_version"]) == ("Feature", "1.1.0")
    assert ("bbox" in item) == (item["geometry"] is not None)
    properties = item["properties"]
    if properties["datetime"] is None:
        assert RFC3339.fullmatch(properties["start_datetime"])
        assert RFC3339.fullmatch(properties["end_datetime"])
        assert properties["start_datetime"] <= properties["end_datetime"]
    else:
        assert RFC3339.fullmatch(properties["datetime"])
    assert properties["gsd"] > 0
    has_view = any("/view/" in uri for uri in item["stac_extensions"])
    assert has_view == any(key.startswith("view:") for key in properties)
    assert any("/projection/v2" in uri for uri in item["stac_extensions"])
    assert "proj:epsg" not in properties  # of version 1
    assert properties["proj:code"] is None or re.fullmatch(r"EPSG:\d+", properties["proj:code"])
    for asset in item["assets"].values():
        assert (out / asset["href"]).is_file()
        assert asset["roles"]
        assert asset["type"] == (COG if asset["href"].endswith(".tif") else "application/json")
    if item["geometry"] is not None and item["geometry"]["type"] == "Polygon":
        (ring,) = item["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
        x, y = np.array(ring).T
        assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0  # counter-clockwise
        assert item["bbox"] == [x.min(), y.min(), x.max(), y.max()]


def test_an_image_on_the_map(tmp_path: Path) -> None:
    image = predicted_town(tmp_path)
    sensor = map_flow(image.georeference, *SHAPE, 200.0, 25.0)
    flow = Flow(sensor.scale_px_per_m, sensor.angle_rad)
    item = _item(replace(image, flows=Flows(flow, "sensor", sensor=flow)), tmp_path)
    properties = item["properties"]
    assert properties["proj:code"] == "EPSG:32617"
    assert properties["proj:shape"] == list(SHAPE)
    assert properties["proj:transform"] == [0.5, 0.0, 436000.0, 0.0, -0.5, 3357000.0]
    assert properties["proj:wkt2"].startswith("PROJCRS[")
    assert properties["view:incidence_angle"] == pytest.approx(25.0, abs=0.01)
    # STAC's azimuth leads from the point below the sensor to the scene.
    assert properties["view:azimuth"] == pytest.approx(20.0, abs=0.01)
    assert properties["geopose:sensor_azimuth"] == pytest.approx(200.0, abs=0.01)
    assert properties["datetime"] is None
    west, south, east, north = item["bbox"]
    assert (east - west) * 96_000 == pytest.approx(350, rel=0.02)
    assert (north - south) * 110_900 == pytest.approx(166, rel=0.03)
    agl = item["assets"]["agl"]
    assert (agl["data_type"], agl["nodata"], agl["unit"]) == ("float32", "nan", "m")
    assert "page" not in item["assets"]


def test_an_image_placed_by_rpcs(tmp_path: Path) -> None:
    rpc = made_up_rpc(size=(SHAPE[1], SHAPE[0]))
    image = predicted_town(
        tmp_path, georeference=Georeference(rpc=rpc), flows=Flows(FLOW, FROM_RPC)
    )
    item = _item(image, tmp_path, layout=MapLayout("utm", 30.0), uint16_cm=True)
    properties = item["properties"]
    assert properties["proj:code"] is None
    assert "proj:transform" not in properties
    west, south, east, north = item["bbox"]
    assert west < LON < east
    assert south < LAT < north
    azimuth, incidence = sensor_direction(rpc, 350.0, 166.0, 30.0)
    assert properties["geopose:sensor_azimuth"] == pytest.approx(azimuth, abs=0.01)
    assert properties["view:incidence_angle"] == pytest.approx(incidence, abs=0.01)
    mapped = item["assets"]["agl_rectified_map"]
    assert mapped["proj:code"] == "EPSG:32721"
    assert len(mapped["proj:transform"]) == 6
    agl = item["assets"]["agl"]
    assert (agl["data_type"], agl["nodata"], agl["unit"]) == ("uint16", 65535.0, "cm")


def test_an_image_without_a_place(tmp_path: Path) -> None:
    image = predicted_town(
        tmp_path, georeference=Georeference(), flows=Flows(FLOW, FROM_MODEL, FLOW)
    )
    item = _item(image, tmp_path)
    assert item["geometry"] is None
    assert len(item["stac_extensions"]) == 1


def test_a_footprint_across_the_date_line(tmp_path: Path) -> None:
    for west in (179.9993, -180.0007):
        place = Georeference("EPSG:4326", (4e-6, 0.0, west, 0.0, -4e-6, -17.0))
        found = footprint(predicted_town(tmp_path, georeference=place), 0.0)
        assert found is not None
        assert found.geometry["type"] == "MultiPolygon"
        assert found.bbox[0] == pytest.approx(179.9993)
        assert found.bbox[2] == pytest.approx(-179.997896)
        rings = [np.array(part[0])[:, 0] for part in found.geometry["coordinates"]]
        assert sorted((ring.min(), ring.max()) for ring in rings) == [
            (-180.0, pytest.approx(-179.997896)),
            (pytest.approx(179.9993), 180.0),
        ]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"NITF_IDATIM": "20150121161308"}, "2015-01-21T16:13:08Z"),
        ({"NITF_IDATIM": "201501211613--"}, None),
        ({"NITF_IDATIM": "20151321161308"}, None),
        ({"TIFFTAG_DATETIME": "2020:01:01 00:00:00"}, None),
    ],
)
def test_the_time_is_the_acquisitions(
    tmp_path: Path, tags: dict[str, str], expected: str | None
) -> None:
    source = tmp_path / "source.tif"
    with rasterio.open(
        source, "w", driver="GTiff", width=1, height=1, count=1, dtype="uint8"
    ) as file:
        file.update_tags(**tags)
    item = _item(replace(predicted_town(tmp_path), source=source), tmp_path)
    assert item["properties"]["datetime"] == expected


def test_a_real_views_time_and_direction(tmp_path: Path) -> None:
    source = REALDATA / "jax068_wv3/train/JAX_068010_RGB.tif"
    if not source.exists():
        pytest.skip("../shared/realdata is absent")
    with open_raster(source) as raster:
        place = raster.georeference
    image = predicted_town(tmp_path, georeference=place, source=source)
    item = _item(image, tmp_path, layout=MapLayout("utm", -20.0))
    assert item["properties"]["datetime"] == "2015-01-21T16:13:08Z"
    assert item["properties"]["geopose:sensor_azimuth"] == pytest.approx(201.4, abs=0.1)
    assert item["properties"]["view:incidence_angle"] == pytest.approx(32.13, abs=0.05)
