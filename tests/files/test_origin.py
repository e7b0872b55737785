"""What was made of a file that has been replaced since is not taken for it, whatever its time."""

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from geopose.cli import run_command
from geopose.convert import main
from geopose.data.heights import read_agl_cm
from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import read_split
from geopose.data.raw import open_raw, write_raw
from geopose.data.rgb import RgbImage, read_image, read_rgb, write_j2k, write_png
from geopose.files import origin
from geopose.files.origin import Origin, is_up_to_date, read_origin
from geopose.files.stamp import FileStamp
from tests.tiny_data import smooth_rgb, write_data_dir


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "_read", {})
    monkeypatch.setattr(origin, "_said", set())


@pytest.fixture(params=["png", "raw"])
def converted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A source and what was made of it."""
    write_data_dir(tmp_path, ["JAX"])
    assert run_command(main, ["--data-dir", str(tmp_path), "--format", request.param]) == 0
    source = tmp_path / "train/JAX_000_RGB.j2k"
    return source, source.with_suffix(".png" if request.param == "png" else ".npy")


def record_of(source: Path) -> ImageRecord:
    return read_split(source.parents[1], "train")[0]


def replace_keeping_time(path: Path, content: bytes, older_s: int) -> None:
    """As `cp -p` and rsync do."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - older_s * 10**9))


@pytest.mark.parametrize("older_s", [0, 1, 86400])
def test_another_source_of_an_old_time_is_read(
    converted: tuple[Path, Path], tmp_path: Path, older_s: int
) -> None:
    source, made = converted
    write_j2k(tmp_path / "other.j2k", smooth_rgb(64, 64, 9))
    other = (tmp_path / "other.j2k").read_bytes()
    replace_keeping_time(source, other, older_s)
    record = record_of(source)
    assert record.rgb_file() == source
    assert record.outdated_raw() == ([made] if made.suffix == ".npy" else [])
    arguments = ["--data-dir", str(tmp_path), "--format", "png" if made.suffix == ".png" else "raw"]
    assert run_command(main, arguments) == 0
    assert record.rgb_file() == made
    assert np.array_equal(read_rgb(made), read_rgb(source))


def test_a_source_of_the_same_size_and_time_is_told_by_its_content(
    converted: tuple[Path, Path],
) -> None:
    source, made = converted
    content = bytearray(source.read_bytes())
    content[-20] ^= 255
    replace_keeping_time(source, bytes(content), 0)
    assert record_of(source).rgb_file() == source
    assert not is_up_to_date(made, source)


def test_an_unchanged_source_is_not_read(
    converted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = converted
    os.utime(made, ns=(0, source.stat().st_mtime_ns))  # not in the same tick of the clock
    monkeypatch.setattr(FileStamp, "of_file", lambda path: pytest.fail(f"read {path}"))
    assert record_of(source).rgb_file() == made


def test_copies_are_compared_once_and_that_is_noted(
    converted: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, made = converted
    shutil.copy(made, tmp_path / made.name)
    copy = tmp_path / source.name
    shutil.copy(source, copy)
    made = tmp_path / made.name
    os.utime(copy, ns=(0, 5 * 10**9))
    time.sleep(0.05)  # the clock of files ticks slowly
    with caplog.at_level(logging.INFO):
        assert is_up_to_date(made, copy)
    assert "compared by their content, once" in caplog.text
    monkeypatch.setattr(origin, "_read", {})
    monkeypatch.setattr(FileStamp, "of_file", lambda path: pytest.fail(f"read {path}"))
    assert is_up_to_date(made, copy)


def test_where_nothing_can_be_noted_it_is_read_once_in_a_process(
    converted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, made = converted
    os.utime(source, ns=(0, 5 * 10**9))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    with caplog.at_level(logging.INFO):
        assert is_up_to_date(made, source)
    assert f"{made}: its times cannot be set (Operation not permitted)" in caplog.text
    monkeypatch.setattr(FileStamp, "of_file", lambda path: pytest.fail(f"read {path}"))
    assert is_up_to_date(made, source)


def test_files_of_before_are_told_by_their_time_and_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = write_data_dir(tmp_path, ["JAX"])
    source = data_dir / "train/JAX_000_RGB.j2k"
    png = source.with_suffix(".png")
    write_png(png, read_rgb(source))
    assert read_origin(png) is None
    assert record_of(source).rgb_file() == png
    with caplog.at_level(logging.INFO):
        assert run_command(main, ["--data-dir", str(data_dir)]) == 0
    assert "1 files do not say what they were made of" in caplog.text
    os.utime(source, ns=(0, png.stat().st_mtime_ns + 1))
    assert record_of(source).rgb_file() == source


def test_replaced_heights_are_read_too(tmp_path: Path) -> None:
    data_dir = write_data_dir(tmp_path, ["JAX"])
    assert run_command(main, ["--data-dir", str(data_dir), "--format", "raw"]) == 0
    source = data_dir / "train/JAX_000_AGL.tif"
    agl_cm = read_agl_cm(source)
    tifffile.imwrite(tmp_path / "b.tif", agl_cm + 1, metadata=None)
    replace_keeping_time(source, (tmp_path / "b.tif").read_bytes(), 100)
    assert record_of(source.with_name("JAX_000_RGB.j2k")).agl_file() == source


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 123456, 3), (1, 1), (123456, 7)])
def test_the_mark_fits_and_changes_no_pixel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also of a terabyte, and of a time before 1970."""
    mark = Origin(FileStamp(2**40, 2**32 - 1), -1)
    pixels = np.arange(np.prod(shape)).astype(np.uint8 if len(shape) == 3 else np.uint16)
    write_raw(tmp_path / "a.npy", pixels.reshape(shape), mark)
    assert np.array_equal(np.load(tmp_path / "a.npy"), pixels.reshape(shape))
    assert open_raw(tmp_path / "a.npy").shape == shape
    found = read_origin(tmp_path / "a.npy")
    assert found is not None
    assert (found.stamp, found.mtime_ns) == (mark.stamp, 2**64 - 1)


def test_a_source_that_changes_while_it_is_converted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = write_data_dir(tmp_path, ["JAX"])
    source = data_dir / "train/JAX_000_RGB.j2k"

    def read_and_replace(path: Path) -> RgbImage:
        image = read_image(path)
        write_j2k(source, smooth_rgb(64, 64, 5))
        return image

    monkeypatch.setattr("geopose.convert.read_image", read_and_replace)
    assert run_command(main, ["--data-dir", str(data_dir)]) == 1
    assert f"{source}: it changed while it was converted" in capfd.readouterr().err
    assert not source.with_suffix(".png").exists()
