"""Raw files: read in part, the very same samples, and never silently wrong ones."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geopose.augment.build import build_augmentation
from geopose.augment.levels import LEVELS
from geopose.cli import run_command
from geopose.convert import main
from geopose.data import dataset as dataset_module
from geopose.data import raw as raw_module
from geopose.data.dataset import GeoposeDataset
from geopose.data.heights import open_agl_m, read_agl_m, write_agl_cm
from geopose.data.image_size import image_size
from geopose.data.layouts.splits import read_split
from geopose.data.raw import open_raw, write_raw
from geopose.data.rgb import open_image, read_rgb
from geopose.errors import InputError
from tests.tiny_data import heights, smooth_rgb, write_data_dir

SIZE = (150, 170)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One data directory as PNG and TIFF, and the same one as raw files."""
    png = write_data_dir(tmp_path_factory.mktemp("png") / "data", ["JAX", "OMA"], SIZE)
    assert run_command(main, ["--data-dir", str(png)]) == 0
    raw = tmp_path_factory.mktemp("raw") / "data"
    shutil.copytree(png, raw)
    assert run_command(main, ["--data-dir", str(raw), "--format", "raw"]) == 0
    return png, raw


@pytest.fixture
def raw_dir(both: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the raw one to spoil."""
    shutil.copytree(both[1], tmp_path / "data")
    return tmp_path / "data"


def _convert(data_dir: Path, *arguments: object) -> int:
    return run_command(main, ["--data-dir", str(data_dir), "--format", "raw", *map(str, arguments)])


def _dataset(data_dir: Path, level: str, crop_size: int | None, downsample: int) -> GeoposeDataset:
    return GeoposeDataset(
        read_split(data_dir, "train"),
        "rgb",
        build_augmentation(level, crop_size, downsample),
        seed=5,
        repeats=6,
    )


def _assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == other[key]


@pytest.mark.parametrize("level", LEVELS)
def test_samples_are_those_of_png_and_tiff_bit_for_bit(both: tuple[Path, Path], level: str) -> None:
    for crop_size, downsample in ((64, 1), (200, 1), (48, 2), (None, 1)):
        png, raw = (_dataset(folder, level, crop_size, downsample) for folder in both)
        assert {record.rgb_file().suffix for record in png.records} == {".png"}
        assert {record.agl_file().suffix for record in raw.records if record.agl_file()} == {".npy"}
        for index in range(len(png)):
            _assert_same(png[index], raw[index])
    whole_png, whole_raw = (GeoposeDataset(read_split(folder, "train"), "bgr") for folder in both)
    _assert_same(whole_png[0], whole_raw[0])
    kept = GeoposeDataset(read_split(both[1], "train"), "bgr", cache=True)
    _assert_same(whole_png[1], kept[1])
    _assert_same(whole_png[1], kept[1])


def test_a_crop_reads_only_the_part_that_it_needs(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, preadv = [], os.preadv

    def spy(file: int, buffers: list[Any], offset: int) -> int:
        read.append(sum(len(buffer) for buffer in buffers))
        return preadv(file, buffers, offset)

    dataset = _dataset(both[1], "d4_only", 32, 1)
    monkeypatch.setattr(raw_module.os, "preadv", spy)
    for index in range(len(dataset)):
        dataset[index]
    assert sum(read) == len(dataset) * 32 * 32 * (3 + 2)


def test_windows_are_those_of_the_whole(tmp_path: Path) -> None:
    rgb, agl_m = smooth_rgb(40, 50), heights(40, 50)
    agl_cm = np.where(np.isnan(agl_m), 65535, agl_m * 100).astype(np.uint16)
    write_raw(tmp_path / "a.npy", rgb)
    write_raw(tmp_path / "b.npy", agl_cm)
    assert np.array_equal(np.load(tmp_path / "a.npy"), rgb)
    assert np.array_equal(read_rgb(tmp_path / "a.npy"), rgb)
    assert np.array_equal(read_agl_m(tmp_path / "b.npy"), agl_m, equal_nan=True)
    assert image_size(tmp_path / "b.npy") == (40, 50)
    pixels, _ = open_image(tmp_path / "a.npy", tmp_path / "a.png")
    metres = open_agl_m(tmp_path / "b.npy")
    assert (pixels.shape, metres.shape) == ((40, 50, 3), (40, 50))
    for rows, columns in (
        (slice(0, 40), slice(0, 50)),
        (slice(3, 17), slice(0, 50)),
        (slice(39, 40), slice(49, 50)),
        (slice(5, 31), slice(7, 20)),
        (slice(4, 4), slice(0, 9)),
    ):
        assert np.array_equal(pixels[rows, columns], rgb[rows, columns])
        assert np.array_equal(metres[rows, columns], agl_m[rows, columns], equal_nan=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, .* expected"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes, .* expected"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "no sound .npy file"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x02\x00{("), "no sound .npy file"),
        (lambda path: np.save(path, np.zeros((8, 8, 3))), "float64 of shape"),
        (lambda path: np.save(path, np.zeros((8, 8, 4), np.uint8)), "uint8 of shape"),
        (lambda path: np.save(path, np.zeros((0, 8, 3), np.uint8)), "uint8 of shape"),
        (lambda path: np.save(path, np.asfortranarray(np.zeros((8, 9), "<u2"))), "uint16"),
        (lambda path: np.save(path, np.zeros((8, 8), ">u2")), "of shape"),
        (lambda path: np.save(path, np.array([{}], dtype=object)), "object of shape"),
        (lambda path: np.save(path, np.zeros((150, 170), "<u2")), "holds heights, expected RGB"),
        (lambda path: np.save(path, np.zeros((8, 8, 3), np.uint8)), "8 x 8 pixels, but .*170 x"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    raw_dir: Path, spoil: Any, message: str
) -> None:
    path = raw_dir / "train" / "JAX_000_RGB.npy"
    spoil(path)
    with pytest.raises(InputError, match=message) as caught:
        GeoposeDataset(read_split(raw_dir, "train"), "rgb")[0]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_while_it_is_in_use_is_named(raw_dir: Path) -> None:
    path = raw_dir / "train" / "JAX_000_RGB.npy"
    raw = open_raw(path)
    os.truncate(path, 3000)
    with pytest.raises(InputError, match=r"JAX_000_RGB\.npy: truncated; delete it or run convert"):
        raw.read()
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*JAX_000_RGB\.npy"):
        raw.read()


def test_files_from_before_the_source_was_replaced_are_not_read_and_that_is_said_once(
    raw_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dataset_module, "_warned", False)
    source = raw_dir / "train" / "OMA_001_AGL.tif"
    changed = np.nan_to_num(heights(*SIZE, 9)) + 1
    write_agl_cm(source, changed)
    raw = source.with_suffix(".npy")
    os.utime(raw, ns=(0, source.stat().st_mtime_ns - 1))
    records = read_split(raw_dir, "train")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sample = GeoposeDataset(records, "rgb")[1]
    assert np.array_equal(sample["TARGET_AGL_MASK"][0], changed)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "1 raw files are older" in warning
    assert str(raw) in warning


def test_raw_files_alone_are_enough(raw_dir: Path) -> None:
    expected = GeoposeDataset(read_split(raw_dir, "train"), "rgb")[0]
    for pattern in ("*.j2k", "*.png", "*.tif"):
        for path in (raw_dir / "train").glob(pattern):
            path.unlink()
    _assert_same(GeoposeDataset(read_split(raw_dir, "train"), "rgb")[0], expected)


def test_conversion_skips_what_is_whole_and_redoes_the_rest(
    raw_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert _convert(raw_dir) == 0
    assert "0 converted, 4 skipped" in capfd.readouterr().out
    train = raw_dir / "train"
    truth = {path: path.read_bytes() for path in train.glob("*.npy")}
    os.truncate(train / "JAX_000_RGB.npy", 500)
    np.save(train / "JAX_000_AGL.npy", np.zeros((8, 8), np.uint16))
    os.utime(train / "OMA_001_AGL.npy", ns=(0, 0))
    stale = train / ".OMA_001_AGL.partial-0123abcd.npy"
    stale.write_bytes(b"half")
    with caplog.at_level(logging.INFO):
        assert _convert(raw_dir, "--workers", 1) == 0
    assert "3 converted, 1 skipped" in capfd.readouterr().out
    assert "3 raw files to write: 0.0 GB" in caplog.text
    assert {path: path.read_bytes() for path in train.glob("*.npy")} == truth
    assert not stale.exists()


def test_images_of_every_kind_become_raw_and_broken_ones_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = write_data_dir(tmp_path / "data", ["JAX", "OMA"], suffix=".png")
    source = data_dir / "train" / "OMA_001_AGL.tif"
    source.write_bytes(source.read_bytes()[:-200])
    assert _convert(data_dir) == 1
    output = capfd.readouterr()
    assert "3 converted, 0 skipped (already there), 1 failed" in output.out
    assert "OMA_001_AGL.tif: broken TIFF" in output.err
    record = read_split(data_dir, "train")[0]
    assert record.rgb_file() == data_dir / "train" / "JAX_000_RGB.npy"
    assert np.array_equal(read_rgb(record.rgb_file()), read_rgb(record.rgb))
    (data_dir / "train" / "JAX_000_RGB.tif").write_bytes(b"")
    assert _convert(data_dir) == 2
    assert "would become the same NPY file" in capfd.readouterr().err


def test_too_little_room_is_found_before_anything_is_written(
    both: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(both[0], data_dir)
    needed = 2 * SIZE[0] * SIZE[1] * 5
    usage = shutil._ntuple_diskusage(10**9, 10**9, needed - 1)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert _convert(data_dir) == 1
    error = capfd.readouterr().err
    assert "raw files take 0.0 GB more" in error
    assert "--format png" in error
    assert not list(data_dir.rglob("*.npy"))


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_whole_files(
    both: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(both[0], data_dir)
    write = np.lib.format.write_array

    def full(file: Any, array: Any, **options: Any) -> None:
        write(file, array, **options)
        if "OMA_001_RGB" in file.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert _convert(data_dir, "--workers", 1) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot write ")
    assert error.endswith("No space left on device")
    left = list(data_dir.rglob("*.npy"))
    assert "JAX_000_RGB.npy" in {path.name for path in left}
    assert "OMA_001_RGB.npy" not in {path.name for path in left}
    for path in left:
        open_raw(path)
    monkeypatch.undo()
    assert _convert(data_dir) == 0
    assert len(list(data_dir.rglob("*.npy"))) == 4
