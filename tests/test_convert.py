"""Conversion: skips what is done, names what is broken, leaves nothing half-written."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from geopose.cli import run_command
from geopose.convert import main
from geopose.data.rgb import read_rgb, write_j2k
from tests.programs import ROOT
from tests.tiny_data import REALDATA, smooth_rgb, write_data_dir

TILES = REALDATA / "autzen_geopose_tiles"
SCRIPT = ROOT / "convert_j2k.py"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_data_dir(tmp_path / "data", ["JAX", "OMA", "ATL"])


def _run(*arguments: object) -> int:
    return run_command(main, [str(argument) for argument in arguments])


def test_all_are_converted_then_skipped_then_redone_when_newer(
    data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = data_dir / "train" / "JAX_000_RGB.j2k"
    (data_dir / "test" / "unlisted.j2k").write_bytes(source.read_bytes())
    assert _run("--data_dir", data_dir, "--workers", 2) == 0
    assert "4 converted, 0 skipped" in capfd.readouterr().out
    pngs = sorted(data_dir.glob("*/*.png"))
    assert len(pngs) == 4
    assert np.array_equal(read_rgb(source.with_suffix(".png")), read_rgb(source))
    os.utime(source, ns=(0, pngs[0].stat().st_mtime_ns + 10**9))
    assert _run("--data-dir", data_dir) == 0
    assert "1 converted, 3 skipped" in capfd.readouterr().out


def test_jp2_is_converted_too_but_never_two_images_to_one_png(
    data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = data_dir / "train" / "JAX_000_RGB.j2k"
    other = source.with_suffix(".jp2")
    other.write_bytes(source.read_bytes())
    assert _run("--data-dir", data_dir) == 2
    assert "JAX_000_RGB.jp2 would become the same PNG" in capfd.readouterr().err
    assert not list(data_dir.glob("*/*.png"))
    source.unlink()
    assert _run("--data-dir", data_dir) == 0
    assert np.array_equal(read_rgb(other.with_suffix(".png")), read_rgb(other))


def test_a_broken_file_is_named_and_the_rest_converted(
    data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = data_dir / "train" / "OMA_001_RGB.j2k"
    broken.write_bytes(broken.read_bytes()[:-50])
    assert _run("--data-dir", data_dir, "--workers", 1) == 1
    output = capfd.readouterr()
    assert "2 converted, 0 skipped (already there), 1 failed" in output.out
    assert "OMA_001_RGB.j2k: broken image (truncated" in output.err
    assert "Traceback" not in output.err
    assert not broken.with_suffix(".png").exists()
    assert len(list(data_dir.glob("train/[!.]*.png"))) == 2


def test_the_environment_names_the_directory(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVENDATA_OVERHEAD_GEOPOSE", str(data_dir))
    assert _run() == 0
    assert len(list(data_dir.glob("train/[!.]*.png"))) == 3


def test_bad_usage_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DRIVENDATA_OVERHEAD_GEOPOSE", raising=False)
    for arguments in ([], ["--data-dir", tmp_path / "none"], ["--data-dir", tmp_path]):
        assert _run(*arguments) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        _run("--data-dir", tmp_path, "--workers", "0")


def test_a_killed_run_leaves_whole_files_and_the_next_one_clears_up(data_dir: Path) -> None:
    for number in range(6):
        write_j2k(data_dir / "train" / f"big_{number}.j2k", smooth_rgb(700, 700, number))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--data-dir", str(data_dir), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(data_dir.glob("train/[!.]*.png")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.kill()
    process.wait()
    for png in data_dir.glob("train/[!.]*.png"):
        assert np.array_equal(read_rgb(png), read_rgb(png.with_suffix(".j2k")))
    stale = data_dir / "train" / ".big_0_RGB.partial-0123abcd.png"
    stale.write_bytes(b"half")
    assert _run("--data-dir", data_dir) == 0
    assert not stale.exists()
    assert len(list(data_dir.glob("train/[!.]*.png"))) == 9


@pytest.mark.skipif(not TILES.is_dir(), reason=f"{TILES} is not there")
def test_real_tiles_convert_without_loss(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for source in TILES.glob("*.j2k"):
        (tmp_path / "train" / source.name).write_bytes(source.read_bytes())
    assert _run("--data-dir", tmp_path) == 0
    truth = read_rgb(TILES / "EUG_t01_RGB.tif")
    assert np.array_equal(read_rgb(tmp_path / "train" / "EUG_t01_RGB.png"), truth)
