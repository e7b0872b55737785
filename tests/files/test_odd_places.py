"""File systems without hard links, long names, killed beginnings, one broken header among many."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.cli import run_command
from geopose.convert import main as convert
from geopose.data.heights import write_agl_cm
from geopose.data.rgb import read_rgb, write_png
from geopose.errors import InputError, StorageError
from geopose.files.atomic import atomic_path, partial_files
from geopose.inference.submission.command import submit
from geopose.sample_city import writer
from geopose.sample_city.writer import MARKER, write_dataset
from tests.tiny_data import smooth_rgb, write_data_dir
from tests.tiny_run import tiny_payload, write_checkpoint, write_config

LONG = "A" * 240 + "_RGB"  # 244 characters


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV])
def test_checkpoints_are_kept_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    last, previous = tmp_path / "last.pth", tmp_path / "previous.pth"
    for epoch in range(3):
        save_checkpoint(last, {**tiny_payload(), "epoch": epoch}, keep=previous)
    assert load_checkpoint(last)["epoch"] == 2
    assert load_checkpoint(previous)["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth", "previous.pth"}


@pytest.mark.parametrize("name", [f"{LONG}.png", "\N{MOUNTAIN}" * 62 + ".png", "a" * 255])
def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as partial:
        partial.write_bytes(b"x")
        assert list(tmp_path.iterdir()) == [partial]
        assert partial_files(tmp_path, Path(name).suffix) == []  # its owner lives
    assert (tmp_path / name).read_bytes() == b"x"
    too_long = atomic_path(tmp_path / (300 * "a"))
    with pytest.raises(StorageError, match="File name too long"), too_long:
        pass
    assert len(list(tmp_path.iterdir())) == 1


def test_long_names_are_converted_and_predicted_and_too_long_ones_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [LONG, "b" * 251, "c_RGB"]  # of the second, "_VFLOW.json" does not fit
    (tmp_path / "test").mkdir()
    rows, metadata = ["id,rgb"], ["id,city,gsd"]
    for number, name in enumerate(names):
        write_png(tmp_path / f"test/{name}.png", smooth_rgb(64, 64, number))
        rows.append(f"{number},{name}.png")
        metadata.append(f"{number},X,0.5")
    (tmp_path / "geopose_test.csv").write_text("\n".join(rows))
    (tmp_path / "metadata.csv").write_text("\n".join(metadata))
    assert run_command(convert, ["--data-dir", str(tmp_path), "--format", "raw"]) == 0
    write_checkpoint(tmp_path / "a.pth")
    config = write_config(tmp_path / "c.yaml", [tmp_path / "a.pth"])
    assert run_command(submit, [str(config), "--data-dir", str(tmp_path)]) == 1
    error = capfd.readouterr().err
    assert "1 of 3 images failed" in error
    assert "b" * 251 in error
    assert "File name too long" in error
    written = {path.name for path in (tmp_path / "out/submission").iterdir()}
    expected = {"A" * 240 + "_AGL.tif", "A" * 240 + "_VFLOW.json", "c_AGL.tif", "c_VFLOW.json"}
    assert written == expected


@pytest.mark.parametrize("left", ["nothing", "partial marker", "folders", "all of it"])
def test_a_sample_city_killed_before_its_marker_goes_on(tmp_path: Path, left: str) -> None:
    root = tmp_path / "city"
    root.mkdir()
    if left in ("partial marker", "all of it"):
        (root / ".sample_city.partial-0123abcd.json").write_text("{")
    if left in ("folders", "all of it"):
        for name in ("train", "test"):
            (root / name).mkdir()
    assert write_dataset(root, 1, 0, 64, cities=CITY) == 1
    assert (root / MARKER).is_file()
    assert not list(root.glob(".*partial*"))


CITY = tuple(writer.CITIES)[:1]


@pytest.mark.parametrize("foreign", ["notes.txt", "train/a.tif", "train"])
def test_what_is_not_a_sample_city_is_left_alone(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / "city" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_dataset(tmp_path / "city", 1, 0, 64, cities=CITY)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("kind", ["tif", "png", "j2k"])
def test_one_broken_header_stops_no_other(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = write_data_dir(tmp_path, ["JAX", "OMA"], suffix=".j2k" if kind != "png" else ".png")
    broken = data_dir / "train/OMA_001_RGB.j2k"
    if kind == "tif":
        broken = data_dir / "train/OMA_001_AGL.tif"
        write_agl_cm(broken, np.zeros((64, 64)))
        data = bytearray(broken.read_bytes())
        at = data.index(b"\x01\x01")  # the tag of the length
        data[at + 2 : at + 4] = b"\x04\x00"
        data[at + 8 : at + 12] = b"\xff\xff\xff\x7f"
    elif kind == "png":
        broken = data_dir / "train/OMA_001_RGB.png"
        data = bytearray(broken.read_bytes())
        data[16:24] = b"\x00\x00\x7f\xff\x00\x00\x7f\xff"
    else:
        data = bytearray(broken.read_bytes())
        data[8:16] = b"\x7f\xff\xff\xff\x7f\xff\xff\xff"
    broken.write_bytes(data)
    assert run_command(convert, ["--data-dir", str(data_dir), "--format", "raw"]) == 1
    output = capfd.readouterr()
    assert "3 converted, 0 skipped (already there), 1 failed" in output.out
    assert f"failed: {broken}" in output.err
    assert read_rgb(data_dir / "train/JAX_000_RGB.npy").shape == (64, 64, 3)


def test_the_copy_of_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "last.pth"
    save_checkpoint(path, tiny_payload())
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(Exception, match="No space left"):
        save_checkpoint(path, tiny_payload(), keep=tmp_path / "previous.pth")
    load_checkpoint(path)
