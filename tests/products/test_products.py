"""Products of a predicted image: what their files hold, and the faults that others make."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geopose.data.heights import NODATA_CM, read_agl_m, write_agl_cm
from geopose.data.vflow import read_vflow
from geopose.errors import InputError, StorageError
from geopose.geometry import TWO_PI
from geopose.imagery.files import acquired, raster, raster_writer
from geopose.imagery.files.raster import open_raster
from geopose.imagery.map import MapLayout
from geopose.imagery.place import gdal
from geopose.imagery.place.field import FlowField, read_field
from geopose.imagery.place.georeference import Gcp, Georeference
from geopose.imagery.rectify import rectify
from geopose.products import item
from geopose.products.predicted import Flow, Flows
from geopose.products.selection import ALL, parse_products
from geopose.products.thumbnail import Thumbnail
from geopose.products.write import ProductOptions, write_products
from geopose.words import FROM_RPC
from tests.made_up_rpc import made_up_rpc
from tests.predicted_images import FLOW, SHAPE, UTM, Recorded, array_of, predicted_town

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
RASTERS = ("agl", "magnitude", "agl_rectified", "rgb_rectified", "occlusion")
FLAT = frozenset({"agl", "magnitude"})


def test_all_that_the_input_allows(tmp_path: Path) -> None:
    done = write_products(predicted_town(tmp_path), tmp_path / "a" / "b")
    names = {path.relative_to(tmp_path / "a" / "b").as_posix() for path in done.files.values()}
    assert names == {
        "town_AGL.tif", "town_VFLOW.json", "town_MAGNITUDE.tif", "town_AGL_RECTIFIED.tif",
        "town_RGB_RECTIFIED.tif", "town_OCCLUSION.tif", "town_PREVIEW.png", "town.json",
        "page/town.json",
    }  # fmt: skip
    found = {p for p in (tmp_path / "a" / "b").rglob("*") if p.is_file()}
    assert found == set(done.files.values())
    assert (done.warnings, done.missing) == ((), ())
    assert done.shares is not None
    assert sum(done.shares) == pytest.approx(1.0)
    assert done.statistics.known_share == pytest.approx(1 - 40 * 60 / (SHAPE[0] * SHAPE[1]))


def test_heights_reach_to_the_last_row_and_column(tmp_path: Path) -> None:
    image = predicted_town(tmp_path)
    expected = np.where(array_of(image.valid), array_of(image.agl_m), np.nan)
    done = write_products(image, tmp_path, FLAT)
    with open_raster(done.files["agl"]) as agl, open_raster(done.files["magnitude"]) as px:
        np.testing.assert_array_equal(agl.read(), expected)
        np.testing.assert_array_equal(px.read(), (expected * FLOW.scale_px_per_m).astype("f4"))
        assert (agl.units, px.units) == (("metre",), ("pixel",))
        assert agl.nodata is not None
        assert math.isnan(agl.nodata)
    known = expected[np.isfinite(expected)]
    assert done.statistics.highest_m == pytest.approx(known.max())
    assert done.statistics.mean_m == pytest.approx(known.mean(), rel=1e-5)
    assert done.statistics.median_m == pytest.approx(np.median(known), abs=0.011)


def test_rectified_is_what_rectify_gives_and_black_is_data(tmp_path: Path) -> None:
    image = predicted_town(tmp_path)
    masked = np.where(array_of(image.valid), array_of(image.agl_m), np.float32(np.nan))
    expected = rectify(masked, FLOW.scale_px_per_m, FLOW.angle_rad, array_of(image.rgb))
    done = write_products(image, tmp_path, frozenset({"rectified"}))
    assert set(done.files) == {"agl_rectified", "rgb_rectified", "occlusion"}
    with open_raster(done.files["agl_rectified"]) as agl:
        np.testing.assert_array_equal(agl.read(), expected.agl_m)
    with open_raster(done.files["occlusion"]) as occlusion:
        np.testing.assert_array_equal(occlusion.read(), expected.occlusion)
        assert (occlusion.read()[:30, :50] == 255).all()
    with open_raster(done.files["rgb_rectified"]) as rgb:
        np.testing.assert_array_equal(rgb.valid(), expected.occlusion == 0)
        assert expected.rgb is not None
        black = (expected.occlusion == 0) & (expected.rgb == 0).all(axis=-1)
        assert black[-20:].any()
        assert rgb.valid()[black].all()


def test_every_tiff_is_a_valid_cog_with_provenance_and_place(tmp_path: Path) -> None:
    cogeo = pytest.importorskip("rio_cogeo.cogeo", reason="rio-cogeo is not installed")
    shape = (600, 701)
    image = predicted_town(tmp_path, shape, uncertainty_m=np.ones(shape, np.float32))
    done = write_products(
        image, tmp_path, frozenset({"agl", "magnitude", "uncertainty", "rectified"})
    )
    for kind in (*RASTERS, "uncertainty"):
        assert cogeo.cog_validate(done.files[kind], strict=True, quiet=True)[0], kind
        with rasterio.open(done.files[kind]) as dataset:
            tags = dataset.tags()
            assert tags["GEOPOSE_MODEL"] == "a network"
            assert tags["GEOPOSE_STRETCH"] == "2 to 98 %"
            assert tags["GEOPOSE_SOURCE"] == "town.tif"
            assert tags["GEOPOSE_FLOW_SOURCE"] == "sensor"
            assert float(tags["GEOPOSE_SCALE_PX_PER_M"]) == FLOW.scale_px_per_m
            assert dataset.crs.to_epsg() == 32617
            assert tuple(dataset.transform)[:6] == UTM.transform
            assert dataset.overviews(1)
    # Heights next to no-data are the same in overviews: a NaN has no share in a mean.
    with rasterio.open(done.files["uncertainty"], overview_level=0) as overview:
        values = overview.read(1)
        assert np.unique(values[np.isfinite(values)]).tolist() == [1.0]


@pytest.mark.parametrize(
    "place",
    [
        Georeference("EPSG:32617", None, tuple(
            Gcp(c, r, 436000.0 + c / 2, 3357000.0 - r / 2) for c, r in ((0, 0), (700, 0), (9, 300))
        )),
        Georeference(rpc=made_up_rpc(size=(SHAPE[1], SHAPE[0]))),
    ],
    ids=["gcps", "rpc"],
)  # fmt: skip
def test_control_points_and_rpcs_are_kept(tmp_path: Path, place: Georeference) -> None:
    image = predicted_town(tmp_path, georeference=place)
    done = write_products(image, tmp_path, FLAT | {"rectified"})
    for kind in RASTERS:
        with open_raster(done.files[kind]) as raster:
            found = raster.georeference
        assert found.kind == place.kind
        np.testing.assert_allclose(found.gcps, place.gcps)
        if place.rpc is not None and found.rpc is not None:
            np.testing.assert_allclose(found.rpc.coefficients, place.rpc.coefficients)
            np.testing.assert_allclose(found.rpc.offsets, place.rpc.offsets)


def test_centimetres_are_the_archives(tmp_path: Path) -> None:
    image = predicted_town(tmp_path)
    masked = np.where(array_of(image.valid), array_of(image.agl_m), np.float32(np.nan))
    write_agl_cm(tmp_path / "archive.tif", masked, allow_nodata=True)
    done = write_products(image, tmp_path, frozenset({"agl"}), ProductOptions(uint16_cm=True))
    with open_raster(done.files["agl"]) as agl, open_raster(tmp_path / "archive.tif") as archive:
        assert agl.dtype == np.uint16
        assert agl.nodata == NODATA_CM
        np.testing.assert_array_equal(agl.read(), archive.read())
    np.testing.assert_array_equal(
        read_agl_m(done.files["agl"]), read_agl_m(tmp_path / "archive.tif")
    )


def test_heights_beyond_centimetres_leave_nothing(tmp_path: Path) -> None:
    image, out = predicted_town(tmp_path), tmp_path / "out"
    write_products(image, out, FLAT | {"vflow"})
    agl_m = array_of(image.agl_m).copy()
    agl_m[332, 700], agl_m[300, 5] = 700.0, -1.0
    agl_m[0, 0] = 900.0  # not valid: no data, and no misfit
    with pytest.raises(StorageError, match=r"2 heights .* -1.0 m at row 300, column 5 "):
        write_products(replace(image, agl_m=agl_m), out, FLAT, ProductOptions(uint16_cm=True))
    assert not [p for p in out.rglob("*") if p.is_file()]


def test_flow_file_holds_both_flows_and_the_field(tmp_path: Path) -> None:
    vectors = np.full((2, 2, 2), 0.5)
    vectors[0, 0, 0] = np.nan
    field = FlowField(np.array([0.0, 700.0]), np.array([0.0, 332.0]), vectors)
    flows = Flows(Flow(0.8, -0.5), FROM_RPC, Flow(0.7, 0.5), 0.05, 0.1, FLOW, 2.5, field)
    done = write_products(predicted_town(tmp_path, flows=flows), tmp_path, frozenset({"vflow"}))
    assert read_vflow(done.files["vflow"]) == (pytest.approx(0.8), pytest.approx(TWO_PI - 0.5))
    text = done.files["vflow"].read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["source"] == "rpc"
    assert content["model"] == pytest.approx(
        {"scale": 0.007, "angle": 0.5, "scale_spread": 0.0005, "angle_spread": 0.1}
    )
    assert content["sensor"] == pytest.approx(
        {"scale": 0.008, "angle": 0.6, "miss_px_of_100_m": 2.5}
    )
    assert content["field"]["x"] == [[None, 0.005], [0.005, 0.005]]
    found = read_field(done.files["vflow"])
    assert found is not None
    np.testing.assert_array_equal(found.px_per_m, vectors)
    np.testing.assert_array_equal(found.columns, field.columns)


def test_rectification_goes_by_the_field(tmp_path: Path) -> None:
    nodes = np.array([0.0, 700.0]), np.array([0.0, 332.0])
    field = FlowField(*nodes, np.broadcast_to([0.0, 0.5], (2, 2, 2)).copy())
    image = predicted_town(tmp_path, flows=Flows(FLOW, FROM_RPC, field=field))
    done = write_products(image, tmp_path, frozenset({"rectified"}))
    masked = np.where(array_of(image.valid), array_of(image.agl_m), np.float32(np.nan))
    with open_raster(done.files["agl_rectified"]) as agl:
        np.testing.assert_array_equal(agl.read(), rectify(masked, 0.5, 0.0).agl_m)


def test_uncertainty_of_one_view_is_said_and_counted(tmp_path: Path) -> None:
    wanted = frozenset({"agl", "uncertainty"})
    done = write_products(predicted_town(tmp_path), tmp_path, wanted)
    assert set(done.files) == {"agl"}
    assert done.missing == ("uncertainty",)
    assert len(done.warnings) == 1
    assert "town.tif: no uncertainty" in done.warnings[0]


def test_a_map_of_each_rectified_product(tmp_path: Path) -> None:
    done = write_products(
        predicted_town(tmp_path), tmp_path, frozenset({"rectified"}),
        ProductOptions(layout=MapLayout("utm")),
    )  # fmt: skip
    for kind in ("agl_rectified", "rgb_rectified", "occlusion"):
        path = done.files[f"{kind}_map"]
        assert path.name == done.files[kind].name.replace(".tif", "_MAP.tif")
        with open_raster(path) as mapped, open_raster(done.files[kind]) as product:
            assert mapped.valid().sum() == product.valid().sum()
            np.testing.assert_array_equal(
                mapped.read()[mapped.valid()], product.read()[product.valid()]
            )
        with rasterio.open(path) as dataset:
            assert dataset.tags()["GEOPOSE_MODEL"] == "a network"


def test_memory_is_that_of_windows(tmp_path: Path) -> None:
    shape = (300, 4200)
    image = predicted_town(tmp_path, (60, 60))
    agl_m = Recorded(np.zeros(shape, np.float32))
    rgb = Recorded(np.zeros((*shape, 3), np.uint8))
    valid, px = Recorded(np.ones(shape, bool)), Recorded(np.zeros(shape, np.float32))
    shares: list[float] = []
    write_products(
        replace(image, shape=shape, agl_m=agl_m, rgb=rgb, valid=valid, magnitude_px=px),
        tmp_path, ALL, progress=shares.append,
    )  # fmt: skip
    assert max(part.largest for part in (agl_m, rgb, valid, px)) <= 300 * (2048 + 64)
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("step", [64, 300, 701])
def test_a_thumbnail_is_block_means_to_the_last_row_and_column(step: int) -> None:
    rng = np.random.default_rng(0)
    values, valid = rng.uniform(0, 50, SHAPE).astype("f4"), rng.uniform(size=SHAPE) < 0.7
    valid[:40, :40] = False
    small, constant = Thumbnail(SHAPE, 100), Thumbnail(SHAPE, 100)
    for top in range(0, SHAPE[0], step):
        for left in range(0, SHAPE[1], step):
            window = slice(top, min(top + step, SHAPE[0])), slice(left, min(left + step, SHAPE[1]))
            small.add(window, values[window], valid[window])
            constant.add(window, np.full_like(values[window], 7.0), valid[window])
    mean, known = small.mean()
    assert mean.shape == (48, 100, 1)
    assert np.isnan(mean[:5, :5]).all()
    same = constant.mean()[0]
    assert set(same[~np.isnan(same)].tolist()) == {7.0}
    rows = np.flatnonzero(np.arange(SHAPE[0]) * 48 // SHAPE[0] == 47)
    columns = np.flatnonzero(np.arange(SHAPE[1]) * 100 // SHAPE[1] == 99)
    last = np.ix_(rows, columns)
    assert mean[-1, -1, 0] == pytest.approx(values[last][valid[last]].mean(), rel=1e-5)
    assert known[-1, -1] == pytest.approx(valid[last].mean())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ALL),
        ("AGL, vflow", {"agl", "vflow"}),
        ("stac,all", ALL),
        ("page", {"page"}),
    ],
)
def test_the_option_is_a_list_of_names(text: str, names: set[str]) -> None:
    assert parse_products(text) == names


@pytest.mark.parametrize("text", ["", " , ", "agl,dsm", "agl vflow"])
def test_an_unknown_product_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="expected all or agl,vflow,magnitude") as error:
        parse_products(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(40, 2000), (900, 60), (1, 1)])
def test_odd_shapes_and_no_height_have_previews(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = predicted_town(tmp_path, (60, 60))
    nothing = np.full(shape, np.nan, np.float32)
    image = replace(
        image, shape=shape, agl_m=nothing, magnitude_px=nothing, valid=np.zeros(shape, bool),
        rgb=np.zeros((*shape, 3), np.uint8), flows=Flows(Flow(0.0, 0.0), "model"),
        georeference=Georeference(),
    )  # fmt: skip
    done = write_products(image, tmp_path)
    assert done.statistics.highest_m is None
    with open_raster(done.files["preview"]) as preview:
        assert preview.width == 1600
        assert preview.height < 1600


def test_without_rasterio_there_are_plain_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (raster, raster_writer, gdal, acquired, item):
        monkeypatch.setattr(module, "find_rasterio", lambda: None)
    image = predicted_town(tmp_path)
    done = write_products(image, tmp_path)
    with open_raster(done.files["agl"]) as agl:
        expected = np.where(array_of(image.valid), array_of(image.agl_m), np.nan)
        np.testing.assert_array_equal(agl.read(), expected)
    content = json.loads(done.files["stac"].read_text())
    assert content["geometry"] is None
    assert content["assets"]["agl"]["type"] == "image/tiff"
    assert done.files["page"].is_file()
