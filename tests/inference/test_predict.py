"""predict.py: anyone's image in, products out, of any kind and size."""

import json
import logging
import math
import os
import shutil

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from geopose.cli import run_command
from geopose.data.rgb import write_png
from geopose.inference.images import job
from geopose.inference.images.command import predict
from geopose.inference.images.tiling import Tiling
from geopose.inference.predict.ensemble import Member
from geopose.sample_city.writer import write_dataset
from tests.tiny_run import ROOT, run_script, write_checkpoint

HEIGHT_M, SCALE = 7.25, 0.75
UTM = CRS.from_epsg(32617)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network whose heights differ from pixel to pixel."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pth")


@pytest.fixture(autouse=True)
def _told(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def same_everywhere(monkeypatch):
    """Whatever the network, its heights are one number, and flow leads to the right."""
    run = Member._run

    def constant(member, planes, gsd_m):
        found = run(member, planes, gsd_m)
        return found._replace(
            agl_m=torch.full_like(found.agl_m, HEIGHT_M),
            magnitude_px=torch.full_like(found.agl_m, HEIGHT_M * SCALE),
            scale_px_per_m=torch.full_like(found.scale_px_per_m, SCALE),
            direction=torch.tensor([[1.0, 0.0]]).expand(len(gsd_m), 2),
        )

    monkeypatch.setattr(Member, "_run", constant)


def picture(height, width, seed=0):
    """Something to look at."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def geotiff(path, array, gsd=0.5, **profile):
    """H x W x C on the map, north up."""
    height, width, count = array.shape
    options = {"driver": "GTiff", "height": height, "width": width, "count": count, "crs": UTM}
    options["transform"] = rasterio.Affine(gsd, 0, 500_000, 0, -gsd, 3_350_000)
    with rasterio.open(path, "w", dtype=array.dtype.name, **{**options, **profile}) as dataset:
        dataset.write(np.moveaxis(array, -1, 0))
    return path


def run(*arguments):
    return run_command(predict, [str(argument) for argument in arguments])


def small(model, out, *more):
    """Options of a run with tiles of 64 pixels, without views, of few products unless it says."""
    tiles = ["--tile", 64, "--overlap", 16, "--tta", "null"]
    tiles += [] if "--products" in more else ["--products", "agl,vflow"]
    return ["--model", model, "--out", out, *tiles, *more]


def heights(out, name):
    with rasterio.open(out / f"{name}_AGL.tif") as dataset:
        return dataset.read(1), dataset.profile, dataset.tags()


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("shape", [(233, 111), (64, 64), (50, 300), (65, 65)])
def test_a_constant_model_gives_a_constant_raster(tmp_path, model, same_everywhere, shape):
    image = geotiff(tmp_path / "a_RGB.tif", picture(*shape))
    assert (
        run(image, *small(model, tmp_path / "out", "--native-gsd", "--products", "agl,vflow")) == 0
    )
    agl_m, profile, _ = heights(tmp_path / "out", "a")
    assert agl_m.shape == shape
    np.testing.assert_allclose(agl_m, HEIGHT_M, rtol=1e-6)
    assert profile["crs"] == UTM
    assert profile["transform"] == rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 3_350_000)
    flow = json.loads((tmp_path / "out/a_VFLOW.json").read_text())
    assert flow["scale"] == pytest.approx(SCALE / 100)  # the challenge's: pixels per centimetre
    assert flow["angle"] == pytest.approx(math.pi / 2)


def test_no_data_stays_no_data(tmp_path, model):
    image = picture(150, 130)
    image[:40], image[100, 60] = 0, 0
    geotiff(tmp_path / "a.tif", image, nodata=0)
    arguments = small(model, tmp_path / "out", "--native-gsd", "--products", "agl,magnitude")
    assert run(tmp_path / "a.tif", *arguments) == 0
    expected = (image != 0).any(axis=-1)
    for name in ("AGL", "MAGNITUDE"):
        with rasterio.open(tmp_path / f"out/a_{name}.tif") as dataset:
            np.testing.assert_array_equal(np.isfinite(dataset.read(1)), expected)


def test_tiles_see_the_ground_sampling_that_the_model_knows(
    tmp_path, model, monkeypatch, caplog, same_everywhere
):
    seen, forward = [], Member.forward

    def spy(member, image, gsd_m):
        seen.append((tuple(image.shape[-2:]), float(gsd_m)))
        return forward(member, image, gsd_m)

    monkeypatch.setattr(Member, "forward", spy)
    image = geotiff(tmp_path / "a.tif", picture(240, 160), gsd=0.1)
    monkeypatch.setattr(job, "known_gsd", lambda _: (0.3, 0.6))
    assert run(image, *small(model, tmp_path / "out", "--products", "agl,vflow,magnitude")) == 0
    zoom = 0.1 / seen[0][1]
    assert seen[0][1] == pytest.approx(0.3)
    assert all(max(size) <= 64 for size, _ in seen)
    agl_m, _, _ = heights(tmp_path / "out", "a")
    np.testing.assert_allclose(agl_m, HEIGHT_M, rtol=1e-6)
    flow = json.loads((tmp_path / "out/a_VFLOW.json").read_text())
    assert flow["scale"] == pytest.approx(SCALE / zoom / 100)  # in pixels of the image
    with rasterio.open(tmp_path / "out/a_MAGNITUDE.tif") as dataset:
        np.testing.assert_allclose(dataset.read(1), HEIGHT_M * SCALE / zoom, rtol=1e-5)
    assert "--native-gsd leaves it" in caplog.text

    seen.clear()
    assert run(image, *small(model, tmp_path / "native", "--native-gsd")) == 0
    assert [gsd for _, gsd in seen] == pytest.approx([0.1] * len(seen))


def test_an_image_without_scale_needs_a_gsd(tmp_path, model, capsys):
    write_png(tmp_path / "a.png", picture(64, 64))
    assert run(tmp_path / "a.png", *small(model, tmp_path / "out")) == 2
    assert "a.png: nothing says how many metres a pixel is" in (line := last_line(capsys))
    assert line.endswith("give --gsd METRES")
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "a.png", *small(model, tmp_path / "out", "--gsd", 0.5)) == 0


def test_images_that_fail_are_named_and_the_rest_goes_on(tmp_path, model, capsys):
    geotiff(tmp_path / "a.tif", picture(100, 64))
    geotiff(tmp_path / "b.tif", picture(64, 64))
    os.truncate(tmp_path / "b.tif", 5000)
    (tmp_path / "c.tif").write_bytes(b"no image")
    images = [tmp_path / f"{name}.tif" for name in "abc"]
    assert run(*images, *small(model, tmp_path / "out")) == 1
    line = last_line(capsys)
    assert "2 of 3 images failed" in line
    assert "b.tif" in line
    assert "c.tif" in line
    assert (tmp_path / "out/a_AGL.tif").is_file()
    assert not list((tmp_path / "out").glob("b*"))
    assert not list((tmp_path / "out").glob(".*maps*"))


def test_a_finished_image_is_kept_and_a_changed_one_done_again(tmp_path, model, caplog):
    geotiff(tmp_path / "a.tif", picture(100, 64))
    geotiff(tmp_path / "b.tif", picture(64, 64))
    arguments = [tmp_path / "*.tif", *small(model, tmp_path / "out")]
    assert run(*arguments) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*_AGL.tif")}
    assert len(before) == 2

    caplog.clear()
    assert run(*arguments) == 0
    assert "2 of 2 images are finished and kept" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in before}

    geotiff(tmp_path / "b.tif", picture(64, 64, seed=1))
    (tmp_path / "out/a_AGL.tif").write_bytes(b"broken")
    caplog.clear()
    assert run(*arguments) == 0
    assert "1 whose image has changed" in caplog.text
    assert "1 whose files are not as they were written" in caplog.text
    heights(tmp_path / "out", "a")

    caplog.clear()
    assert run(*arguments, "--flow", "model") == 0
    assert "flow auto -> model" in caplog.text


def test_two_processes_do_what_one_does(tmp_path, model):
    for name, shape in (("a", (150, 90)), ("b", (64, 64)), ("c", (80, 64))):
        geotiff(tmp_path / f"{name}.tif", picture(*shape))
    assert run(tmp_path / "*.tif", *small(model, tmp_path / "one")) == 0
    arguments = map(str, (tmp_path / "*.tif", *small(model, tmp_path / "two", "--nproc", 2)))
    done = run_script(ROOT / "predict.py", *arguments)
    assert done.returncode == 0, done.stderr
    for name in "abc":
        one, two = (heights(tmp_path / out, name)[0] for out in ("one", "two"))
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_dry_run_writes_nothing(tmp_path, model, caplog):
    geotiff(tmp_path / "a.tif", picture(150, 90))
    arguments = small(model, tmp_path / "out", "--dry-run", "--native-gsd")
    assert run(tmp_path / "a.tif", *arguments) == 0
    assert "6 tiles: 64 x 64 px" in caplog.text
    assert "memory of each process" in caplog.text
    assert not (tmp_path / "out").exists()


def test_sixteen_bits_of_four_bands_with_control_points(tmp_path, model):
    array = (picture(90, 90).astype(np.uint16) * 8)[..., [0, 1, 2, 0]]
    corners = [(0, 0, 500_000, 3_350_000), (0, 90, 500_045, 3_350_000), (90, 0, 500_000, 3_349_955)]
    points = [GroundControlPoint(row, column, x, y) for row, column, x, y in corners]
    path = geotiff(tmp_path / "a.tif", array, photometric="minisblack", gcps=points)
    assert run(path, *small(model, tmp_path / "out", "--bands", "3,2,1")) == 0
    with rasterio.open(tmp_path / "out/a_AGL.tif") as dataset:
        assert [(p.row, p.col, p.x, p.y) for p in dataset.gcps[0]] == corners
        assert "bands 3,2,1 (as given); percentiles 1 to 99" in str(dataset.tags())


def test_flow_of_the_sensor_where_it_is_known(tmp_path, model, capsys):
    image = geotiff(tmp_path / "a.tif", picture(64, 64))
    arguments = small(model, tmp_path / "out", "--products", "agl,vflow")
    assert run(image, *arguments, "--sensor", "90,30") == 0
    flow = json.loads((tmp_path / "out/a_VFLOW.json").read_text())
    assert flow["angle"] == pytest.approx(math.pi / 2)  # pi - azimuth, north up
    assert flow["scale"] == pytest.approx(math.tan(math.radians(30)) / 0.5 / 100, rel=1e-3)
    capsys.readouterr()
    assert run(image, *arguments, "--flow", "rpc") == 1
    assert "--flow rpc, but the image has no RPCs" in last_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gsd", "-1"], "--gsd is -1.0, must be metres above 0"),
        (["--tile", "10"], "--tile is 10, must be 64 or more"),
        (["--overlap", "40"], "--overlap is 40, must be at most half of the tile, 32"),
        (["--sensor", "90"], "--sensor 90: expected AZIMUTH,INCIDENCE"),
        (["--sensor", "90,95"], "--sensor 90,95: expected AZIMUTH,INCIDENCE"),
        (["--bands", "7,8,9"], "--bands 7,8,9, but it has 3 bands"),
        (["--stretch", "9,1"], "--stretch 9,1"),
        (["--products", "agl,nothing"], "nothing"),
        (["--tta", "d5"], "d5"),
        (["--nproc", "0"], "--nproc is 0"),
        (["--model", "gone.pth"], "gone.pth"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, model, capsys, arguments, words):
    image = geotiff(tmp_path / "a.tif", picture(64, 64))
    assert run(image, *small(model, tmp_path / "out"), *arguments) == 2
    assert words in last_line(capsys)
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_are_refused(tmp_path, model, capsys):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        geotiff(tmp_path / folder / "a.tif", picture(64, 64))
    assert run(tmp_path / "x", tmp_path / "y", *small(model, tmp_path / "out")) == 2
    assert "products of both would be called a_AGL.tif" in last_line(capsys)
    shutil.rmtree(tmp_path / "y")
    assert run(tmp_path / "x", tmp_path / "x/a.tif", *small(model, tmp_path / "out")) == 0


def test_tiles_leave_no_seams(tmp_path):
    """Steps across the borders of tiles are no larger than others, on a scene with the demo."""
    write_dataset(tmp_path, train=1, test=1, size=400, seed=3)
    scene = tmp_path / "test/SYB_500000_RGB.j2k"
    tile, overlap = 96, 24
    options = ["--gsd", "0.4", "--native-gsd", "--tta", "null", "--products", "agl"]
    tiles = ["--tile", tile, "--overlap", overlap]
    assert run(scene, "--model", "demo", "--out", tmp_path / "out", *tiles, *options) == 0
    (file,) = (tmp_path / "out").glob("*_AGL.tif")
    with rasterio.open(file) as dataset:
        agl_m = dataset.read(1)
    for axis, heights_m in (("columns", agl_m), ("rows", agl_m.T)):
        spans = getattr(Tiling.of(agl_m.shape, tile, overlap), axis).spans
        borders = {s.start - 1 for s in spans[1:]} | {s.stop - 1 for s in spans[:-1]}
        steps = np.abs(np.diff(heights_m, axis=1)).mean(axis=0)
        beside = {b + d for b in borders for d in range(-8, 9)} - borders
        assert len(borders) >= 8
        assert steps[sorted(borders)].mean() < 1.05 * steps[sorted(beside)].mean()


def test_a_mask_inside_a_cloud_optimised_file_is_no_data(tmp_path, model):
    plain, cog = tmp_path / "plain.tif", tmp_path / "a.tif"
    geotiff(plain, picture(90, 80))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(plain, "r+") as dataset:
            known = np.full((90, 80), 255, np.uint8)
            known[:, :30] = 0
            dataset.write_mask(known)
        rasterio.shutil.copy(plain, cog, driver="COG")
    assert run(cog, *small(model, tmp_path / "out", "--native-gsd")) == 0
    agl_m, _, _ = heights(tmp_path / "out", "a")
    np.testing.assert_array_equal(np.isfinite(agl_m), known > 0)


def test_a_mosaic_file_that_disagrees_with_its_tiles_is_one_line(tmp_path, model, capsys):
    geotiff(tmp_path / "a_R1C1.tif", picture(64, 64))
    (tmp_path / "a.IMD").write_text("numRows = 640;\nnumColumns = 640;\nbandId = RGB;\nEND;\n")
    (tmp_path / "a.TIL").write_text(
        'bandId = "RGB";\nnumTiles = 1;\ntileSizeX = 640;\ntileSizeY = 640;\n'
        'BEGIN_GROUP = TILE_1\n\tfilename = "a_R1C1.tif";\n\tULColOffset = 0;\n\tULRowOffset = 0;\n'
        "\tLRColOffset = 639;\n\tLRRowOffset = 639;\nEND_GROUP = TILE_1\nEND;\n"
    )
    code = run(tmp_path / "a.TIL", *small(model, tmp_path / "out", "--gsd", "0.5"))
    said = capsys.readouterr().err.splitlines()
    assert code in (1, 2)
    assert said[-1].startswith("error: ")
    assert "a.TIL" in said[-1]
