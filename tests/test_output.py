"""What is handed in and what is looked at: archive, prediction files, pictures."""

import gzip
import math
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from geopose.cli import run_command
from geopose.data.heights import read_agl_cm, write_agl_cm
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.errors import RunError, StorageError
from geopose.files.stamp import FileStamp
from geopose.output import compare
from geopose.output.archive import write_archive
from geopose.output.preview import Pose, PreviewRow, draw_preview, save_visualization
from geopose.output.writer import check_misfits, to_centimetres, write_prediction
from tests.tiny_run import SIZES, write_split


def make_files(folder, names=("b_AGL.tif", "a_VFLOW.json")):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode() * 1000)
    return {name: FileStamp.of_file(folder / name) for name in names}


def test_archive_bytes_depend_on_names_and_content_only(tmp_path):
    stamps = make_files(tmp_path / "one")
    make_files(tmp_path / "two")
    (tmp_path / "two/a_VFLOW.json").chmod(0o600)
    write_archive(tmp_path / "1.tar.gz", tmp_path / "one", stamps)
    reverse = dict(reversed(stamps.items()))
    write_archive(tmp_path / "other_name.tar.gz", tmp_path / "two", reverse)
    first = (tmp_path / "1.tar.gz").read_bytes()
    assert first == (tmp_path / "other_name.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "1.tar.gz") as archive:
        assert archive.getnames() == sorted(stamps)
        assert {member.mode for member in archive} == {0o644}


def test_archive_is_an_ordinary_one_for_others_programs(tmp_path):
    """Names and sizes of all kinds, unpacked by the system's tar."""
    names = [f"{'long' * 40}_AGL.tif", "empty_AGL.tif", "Zürich_AGL.tif", "b_VFLOW.json"]
    make_files(tmp_path / "files", names)
    (tmp_path / "files/empty_AGL.tif").write_bytes(b"")
    stamps = {name: FileStamp.of_file(tmp_path / "files" / name) for name in names}
    write_archive(tmp_path / "a.tar.gz", tmp_path / "files", stamps)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xzf", tmp_path / "a.tar.gz", "-C", tmp_path / "out"], check=True)
    unpacked = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert unpacked == {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}


@pytest.mark.parametrize("names", [["b_AGL.tif", "c_AGL.tif"], []])
def test_archive_with_something_missing_is_not_written(tmp_path, names):
    stamps = make_files(tmp_path / "files")
    wanted = dict.fromkeys(names, stamps["b_AGL.tif"])
    with pytest.raises(RunError, match="not written"):
        write_archive(tmp_path / "a.tar.gz", tmp_path / "files", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_archive_of_a_file_that_has_changed_is_not_written(tmp_path):
    stamps = make_files(tmp_path / "files")
    (tmp_path / "files/b_AGL.tif").write_bytes(b"B_AGL.tif" * 1000)
    with pytest.raises(RunError, match=r"b_AGL\.tif: changed"):
        write_archive(tmp_path / "a.tar.gz", tmp_path / "files", stamps)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("where", [15, 600, -1040, -6])
def test_archive_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch, where):
    """The disk returns another byte than was written."""
    stamps = make_files(tmp_path / "files")
    compress = gzip.compress

    def spoilt(*arguments, **options):
        block = bytearray(compress(*arguments, **options))
        if len(block) > 1040:  # the height map's
            block[where] ^= 1
        return bytes(block)

    monkeypatch.setattr(gzip, "compress", spoilt)
    with pytest.raises(RunError, match=r"a\.tar\.gz"):
        write_archive(tmp_path / "a.tar.gz", tmp_path / "files", stamps)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.006, 655.346, 700.0])
def test_heights_that_do_not_fit_are_counted_and_located(value):
    agl_m = torch.full((2, 1, 5, 7), 1.234)
    agl_m[1, 0, 3, 2] = agl_m[1, 0, 4, 6] = value
    stored = to_centimetres(agl_m)
    check_misfits(stored.misfits[0], 7, "first")
    with pytest.raises(StorageError, match=r"^second: 2 heights .* row 3, column 2 "):
        check_misfits(stored.misfits[1], 7, "second")
    assert stored.agl_cm[0].unique().tolist() == [123]


def test_heights_are_rounded_as_files_of_metres_are(tmp_path):
    """On the device or on the way to the file: the same numbers, up to both ends of the range."""
    generator = torch.Generator().manual_seed(0)
    agl_m = torch.rand((1, 1, 40, 50), generator=generator) * 655.34
    agl_m[0, 0, 0, :6] = torch.tensor([0.0, -0.004, 655.34, 655.344, 0.005, 0.015])
    write_agl_cm(tmp_path / "X_AGL.tif", agl_m[0, 0].numpy())
    stored = to_centimetres(agl_m)
    assert not stored.misfits[0, 0]
    np.testing.assert_array_equal(stored.agl_cm[0], read_agl_cm(tmp_path / "X_AGL.tif"))


@pytest.mark.parametrize(("scale", "angle"), [(math.nan, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_a_prediction_is_written_whole_or_not_at_all(tmp_path, scale, angle):
    agl_cm = np.ones((4, 5), np.uint16)
    write_prediction(tmp_path, "X_1_RGB.j2k", agl_cm, 1.5, -math.pi / 2)
    assert read_vflow(tmp_path / "X_1_VFLOW.json") == pytest.approx((1.5, 1.5 * math.pi))
    with pytest.raises(RunError, match="X_1_VFLOW"):
        write_prediction(tmp_path, "X_1_RGB.j2k", agl_cm, scale, angle)
    assert list(tmp_path.iterdir()) == []  # an earlier run's files would pass for this one's


def hill(size):
    rows, columns = np.indices(size)
    top = np.hypot(rows - size[0] / 2, columns - size[1] / 2)
    return np.clip(20 - top, 0, None).astype(np.float32)


def red(picture):
    """Pixels in the colour of the arrows."""
    rgb = picture.astype(int)
    return (rgb[..., 0] > 180) & (rgb[..., 1] < 90) & (rgb[..., 2] < 90)


def test_arrows_point_along_the_flow(tmp_path):
    """Angle pi/2 points right: the arrows' heads, wider than their shafts, lie right of centre."""
    rgb = np.full((64, 64, 3), 90, np.uint8)
    centres = []
    for angle in (math.pi / 2, 3 * math.pi / 2):
        save_visualization(tmp_path / "X_VIZ.png", rgb, hill((64, 64)), 0.4, angle)
        centres.append(np.argwhere(red(read_rgba(tmp_path / "X_VIZ.png"))).mean(axis=0))
    right, left = centres
    assert right[1] > left[1] + 4
    assert abs(right[0] - left[0]) < 4


def read_rgba(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("size", [(64, 64), (40, 200), (200, 30), (1, 1), (2048, 1500)])
def test_pictures_of_any_size(tmp_path, size):
    rgb = np.zeros((*size, 3), np.uint8)
    save_visualization(tmp_path / "X_VIZ.jpg", rgb, hill(size), 1.0, 1.0)
    assert max(read_rgb(tmp_path / "X_VIZ.jpg").shape) > 300


@pytest.mark.parametrize("truth", ["some", "none", "flat"])
def test_preview_with_unknown_and_flat_heights(tmp_path, truth):
    agl_m = {"some": hill((64, 80)), "none": np.full((64, 80), np.nan), "flat": np.zeros((64, 80))}
    true = agl_m[truth].copy()
    true[:5] = np.nan
    rgb = np.full((64, 80, 3), 90, np.uint8)
    pose = Pose(hill((64, 80)), 0.5, 2.0)
    rows = [PreviewRow("one", rgb, Pose(true, 0.0, 0.0), pose), PreviewRow("two", rgb, pose, pose)]
    draw_preview(tmp_path / "p.png", rows, "heading")
    assert min(read_rgba(tmp_path / "p.png").shape[:2]) > 300


@pytest.fixture
def scenes(tmp_path):
    """Arguments of the comparison for one image with truth and prediction."""
    data = write_split(tmp_path / "data", SIZES[:1])
    for name in ("truth", "predictions"):
        (tmp_path / name).mkdir()
        write_prediction(tmp_path / name, "ABC_000_RGB.j2k", np.ones(SIZES[0], np.uint16), 1.0, 1.0)
    folders = ("--predictions", str(tmp_path / "predictions"), "--truth", str(tmp_path / "truth"))
    return ["--data-dir", str(data), *folders]


@pytest.mark.parametrize(
    "out", ["/dev/null/x.png", "{tmp}/folder.png", "{tmp}/" + "a" * 300 + ".png"]
)
def test_comparison_that_cannot_be_written_is_noticed_first(tmp_path, capsys, scenes, out):
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "truth").iterdir():
        path.unlink()  # would be complained about next
    assert run_command(compare.main, [*scenes, "--out", out.format(tmp=tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out")
    assert error.count("\n") == 1


@pytest.mark.parametrize("folder", ["truth", "predictions"])
def test_comparison_names_heights_of_another_size(tmp_path, capsys, scenes, folder):
    out = tmp_path / "new" / "p.png"
    assert run_command(compare.main, [*scenes, "--out", str(out)]) == 0
    out.unlink()
    write_prediction(tmp_path / folder, "ABC_000_RGB.j2k", np.ones((9, 7), np.uint16), 1.0, 1.0)
    assert run_command(compare.main, [*scenes, "--out", str(out)]) == 2
    assert str(Path(folder) / "ABC_000_AGL.tif: 7 x 9 pixels") in capsys.readouterr().err
    assert not out.exists()
