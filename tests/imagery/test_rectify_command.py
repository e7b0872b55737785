"""rectify.py as a user runs it: one image, a submission, and what can be wrong with them."""

import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

from geopose.cli import run_command
from geopose.data.heights import read_agl_m, write_agl_cm
from geopose.data.rgb import read_rgb, write_png
from geopose.data.vflow import read_vflow, write_vflow
from geopose.imagery.command import main
from geopose.imagery.files.raster import open_raster
from geopose.imagery.rectify import rectify
from tests.tiny_data import heights, smooth_rgb, write_data_dir
from tests.tiny_run import run_script

KINDS = ("AGL_RECTIFIED", "RGB_RECTIFIED", "OCCLUSION")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images, heights and flow of three places; `train` is a submission of them, too."""
    return write_data_dir(tmp_path / "data", ["AAA", "BBB", "CCC"], (70, 90), ".png")


def _files(data: Path, stem: str) -> list[str]:
    train = data / "train"
    files = (
        ("--agl", f"{stem}_AGL.tif"),
        ("--vflow", f"{stem}_VFLOW.json"),
        ("--rgb", f"{stem}_RGB.png"),
    )
    return [word for option, name in files for word in (option, str(train / name))]


def _check(out: Path, data: Path, stem: str) -> None:
    train = data / "train"
    flow = read_vflow(train / f"{stem}_VFLOW.json")
    expected = rectify(
        read_agl_m(train / f"{stem}_AGL.tif"), *flow, read_rgb(train / f"{stem}_RGB.png")
    )
    with open_raster(out / f"{stem}_AGL_RECTIFIED.tif") as agl:
        assert agl.dtype == np.float32
        np.testing.assert_array_equal(agl.read(), expected.agl_m)
        assert agl.nodata is not None
        assert math.isnan(agl.nodata)
    with open_raster(out / f"{stem}_RGB_RECTIFIED.tif") as rgb:
        np.testing.assert_array_equal(rgb.read(), expected.rgb)
        np.testing.assert_array_equal(rgb.valid(), expected.occlusion == 0)
    with open_raster(out / f"{stem}_OCCLUSION.tif") as occlusion:
        np.testing.assert_array_equal(occlusion.read(), expected.occlusion)
        assert occlusion.nodata == 255


def test_one_image(data: Path, tmp_path: Path) -> None:
    done = run_script("rectify.py", *_files(data, "AAA_000"), "--out", tmp_path / "o" / "p")
    assert done.returncode == 0, done.stderr
    _check(tmp_path / "o" / "p", data, "AAA_000")
    assert "% hidden" in done.stderr
    for kind in KINDS:
        assert f"wrote {tmp_path}/o/p/AAA_000_{kind}.tif" in done.stderr
    assert sorted(p.name for p in (tmp_path / "o" / "p").iterdir()) == sorted(
        f"AAA_000_{kind}.tif" for kind in KINDS
    )


def test_heights_in_metres_and_no_image(tmp_path: Path) -> None:
    agl_m = heights(50, 60, 1)
    agl_m[40, 40] = -999.0
    tifffile.imwrite(tmp_path / "x_AGL.tif", agl_m, extratags=[(42113, "s", 0, "-999", True)])
    write_vflow(tmp_path / "x.json", 1.2, 0.4)
    files = ["--agl", str(tmp_path / "x_AGL.tif"), "--vflow", str(tmp_path / "x.json")]
    assert run_command(main, [*files, "--out", str(tmp_path / "o")]) == 0
    agl_m[40, 40] = np.nan
    with open_raster(tmp_path / "o" / "x_AGL_RECTIFIED.tif") as agl:
        np.testing.assert_array_equal(agl.read(), rectify(agl_m, 1.2, 0.4).agl_m)
    assert not (tmp_path / "o" / "x_RGB_RECTIFIED.tif").exists()


@pytest.mark.parametrize("packed", [True, False])
def test_a_submission(data: Path, tmp_path: Path, packed: bool) -> None:
    submission = tmp_path / "sub"
    submission.mkdir()
    for path in (data / "train").iterdir():
        if not path.name.endswith(".png"):
            (submission / path.name).write_bytes(path.read_bytes())
    if packed:
        with tarfile.open(tmp_path / "sub.tar.gz", "w:gz") as tar:
            for path in sorted(submission.iterdir()):
                tar.add(path, path.name)
    archive = tmp_path / "sub.tar.gz" if packed else submission
    assert run_command(main, ["--archive", str(archive), "--data-dir", str(data)]) == 0
    out = tmp_path / "sub_rectified"
    for stem in ("AAA_000", "BBB_001", "CCC_002"):
        _check(out, data, stem)
    assert len(list(out.iterdir())) == 9
    assert not list(tmp_path.glob(".rectify-*"))


def test_a_broken_image_is_named_and_the_others_go_on(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "train" / "BBB_001_AGL.tif").write_bytes(b"II*\0 no more")
    (data / "train" / "ZZZ_AGL.tif").write_bytes((data / "train" / "AAA_000_AGL.tif").read_bytes())
    out = tmp_path / "o"
    arguments = ["--archive", str(data / "train"), "--data-dir", str(data), "--out", str(out)]
    assert run_command(main, arguments) == 1
    said = capfd.readouterr().err + caplog.text
    assert "2 of 4 images not rectified: BBB_001, ZZZ" in said
    assert "BBB_001: not rectified" in said
    _check(out, data, "AAA_000")
    _check(out, data, "CCC_002")
    assert len(list(out.iterdir())) == 6


def _spoil(kind: str, data: Path) -> None:
    train = data / "train"
    if kind == "size":
        write_png(train / "AAA_000_RGB.png", smooth_rgb(70, 91))
    elif kind == "flow":
        (train / "AAA_000_VFLOW.json").write_text('{"scale": NaN, "angle": 0}')
    elif kind == "no flow":
        (train / "AAA_000_VFLOW.json").unlink()
    elif kind == "truncated":
        content = (train / "AAA_000_AGL.tif").read_bytes()
        (train / "AAA_000_AGL.tif").write_bytes(content[: len(content) // 2])
    elif kind == "rgb as heights":
        tifffile.imwrite(train / "AAA_000_AGL.tif", smooth_rgb(70, 90))
    elif kind == "infinite":
        tifffile.imwrite(train / "AAA_000_AGL.tif", np.full((70, 90), np.inf, np.float32))
    elif kind == "not metres":
        tifffile.imwrite(train / "AAA_000_AGL.tif", np.full((70, 90), 1e20, np.float32))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", "AAA_000_RGB.png: 91 x 70 pixels"),
        ("flow", "AAA_000_VFLOW.json"),
        ("no flow", "AAA_000_VFLOW.json"),
        ("truncated", "AAA_000_AGL.tif"),
        ("rgb as heights", "3 bands of uint8"),
        ("infinite", "a height of inf"),
        ("not metres", "a height of 1e+20"),
    ],
)
def test_bad_input_is_one_line(
    kind: str, message: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    _spoil(kind, data)
    out = tmp_path / "o"
    assert run_command(main, [*_files(data, "AAA_000"), "--out", str(out)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert message in said
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --agl"),
        (["--agl", "a", "--archive", "b"], "give either --agl"),
        (["--agl", "a", "--out", "o"], "give either --vflow, the flow of a"),
        (["--agl", "a", "--vflow", "v"], "--out is missing"),
        (["--archive", "a", "--vflow", "v"], "--vflow, --flow and --rgb go with --agl"),
        (["--agl", "a", "--vflow", "v", "--flow", "rpc", "--out", "o"], "give either --vflow"),
        (["--archive", "a", "--flow", "rpc"], "--vflow, --flow and --rgb go with --agl"),
        (["--archive", "nowhere.tar.gz", "--data-dir", "DATA"], "nowhere.tar.gz"),
        (["--archive", "DATA", "--data-dir", "DATA"], "holds no *_AGL.tif"),
        (["--agl", "a", "--vflow", "v", "--out", "o", "--ground-height", "3"], "goes with --map"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(data) if word == "DATA" else word for word in arguments]
    assert run_command(main, arguments) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not list(tmp_path.glob("*_rectified"))


def test_a_map_beside_the_products(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    agl_m = np.zeros((60, 80), np.float32)
    agl_m[20:30, 20:40] = 10.0
    transform = rasterio.transform.from_origin(436000.0, 3357000.0, 0.5, 0.5)
    with rasterio.open(
        tmp_path / "x_AGL.tif", "w", driver="GTiff", height=60, width=80, count=1,
        dtype="float32", crs="EPSG:32617", transform=transform,
    ) as file:  # fmt: skip
        file.write(agl_m, 1)
    write_vflow(tmp_path / "x.json", 1.0, 0.0)
    files = ["--agl", str(tmp_path / "x_AGL.tif"), "--vflow", str(tmp_path / "x.json")]
    assert run_command(main, [*files, "--out", str(tmp_path), "--map", "utm"]) == 0
    with open_raster(tmp_path / "x_AGL_RECTIFIED_MAP.tif") as mapped:
        column, row = mapped.georeference.from_map(
            436000.0 + 0.5 * np.array([20.5, 39.5, 30.0, 30.0, 30.0]),
            3357000.0 - 0.5 * np.array([30.5, 39.5, 35.0, 28.0, 45.0]),
        )
        found = mapped.read()[np.rint(row).astype(int), np.rint(column).astype(int)]
    np.testing.assert_array_equal(found, [10.0, 10.0, 10.0, np.nan, 0.0])


def test_no_data_in_centimetres(tmp_path: Path) -> None:
    agl_m = np.zeros((20, 20), np.float32)
    agl_m[3:6, 3:6] = np.nan
    write_agl_cm(tmp_path / "y_AGL.tif", agl_m, allow_nodata=True)
    write_vflow(tmp_path / "y.json", 1.0, 0.0)
    files = ["--agl", str(tmp_path / "y_AGL.tif"), "--vflow", str(tmp_path / "y.json")]
    assert run_command(main, [*files, "--out", str(tmp_path)]) == 0
    with open_raster(tmp_path / "y_OCCLUSION.tif") as occlusion:
        np.testing.assert_array_equal(occlusion.read() == 255, np.isnan(agl_m))


def test_no_map_of_an_image_without_a_place(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Said before anything is worked out."""
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    out = tmp_path / "o"
    assert run_command(main, [*_files(data, "AAA_000"), "--out", str(out), "--map", "utm"]) == 2
    assert "AAA_000_RGB.png: it says nothing of its place" in capfd.readouterr().err
    assert not out.exists()
