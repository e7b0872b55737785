"""Images and views of a ground sampling that a network has not learned from are counted."""

from pathlib import Path

import numpy as np
import pytest

import geopose
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.cli import run_command
from geopose.inference.images.command import predict
from geopose.inference.submission.command import submit, submit_ddp
from tests.tiny_run import tiny_payload, write_checkpoint, write_config, write_split

SIZES = ((64, 64),) * 4  # of 0.3, 0.4, 0.5 and 0.6 m


def network(path: Path, known: tuple[float, float]) -> Path:
    """A tiny network's file with a range of gsd."""
    save_checkpoint(path, {**tiny_payload(), "gsd_range_m": list(known)})
    return path


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings that are about it."""
    return [line for line in caplog.messages if "learned from" in line]


def run(folder: Path, models: list[Path], *more: str, command=submit) -> None:
    config = write_config(folder / "c.yaml", models)
    arguments = [str(config), "--data-dir", str(folder / "data"), *more]
    assert run_command(command, arguments) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_split(tmp_path / "data", SIZES)


@pytest.mark.usefixtures("data")
def test_coarser_and_finer_images_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = network(tmp_path / "a.pth", (0.1, 0.33))
    run(tmp_path, [write_checkpoint(tmp_path / "says_nothing.pth"), known])
    assert said(caplog) == [
        f"{known} has learned from 0.1 to 0.33 m per pixel, and 2 images were shown to it at 0.5 "
        "to 0.6 m: what it says of them may be far off. Use a network that knows them, or views of "
        "one size such as d4, or predict.py without --native-gsd, which resamples"
    ]
    caplog.clear()
    run(tmp_path, [network(tmp_path / "a.pth", (0.45, 0.7))], "--force")
    assert "and 1 image was shown to it at 0.3 m:" in said(caplog)[0]


@pytest.mark.usefixtures("data")
def test_each_network_has_a_line_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fine, coarse = network(tmp_path / "a.pth", (0.1, 0.33)), network(tmp_path / "b.pth", (0.6, 1.0))
    run(tmp_path, [fine, coarse])
    first, second = said(caplog)
    assert first.startswith(f"{fine} has learned from 0.1 to 0.33 m per pixel, and 2 images")
    assert "shown to it at 0.5 to 0.6 m:" in first
    assert second.startswith(f"{coarse} has learned from 0.6 to 1 m per pixel, and 2 images")
    assert "shown to it at 0.3 to 0.4 m:" in second


def test_they_are_counted_where_an_image_has_failed(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "test/ABC_001_RGB.j2k").write_bytes(b"no image")
    config = write_config(tmp_path / "c.yaml", [network(tmp_path / "a.pth", (0.1, 0.33))])
    assert run_command(submit, [str(config), "--data-dir", str(data)]) == 1
    assert "and 2 images were shown to it at 0.5 to 0.6 m:" in said(caplog)[0]


@pytest.mark.usefixtures("data")
def test_a_little_beyond_is_no_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, [network(tmp_path / "a.pth", (0.35, 0.5))])
    assert not said(caplog)


@pytest.mark.usefixtures("data")
def test_views_of_other_sizes_count_as_what_they_show(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = network(tmp_path / "a.pth", (0.3, 0.7))
    run(tmp_path, [known], "ensemble.tta=ms")  # half the size, and five times
    (line,) = said(caplog)
    assert "and 4 images were shown to it at 0.06 to 1.2 m:" in line


@pytest.mark.usefixtures("data")
def test_processes_count_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = [network(tmp_path / "a.pth", (0.1, 0.2))]
    run(tmp_path, models, "--nproc", "2", command=submit_ddp)
    (line,) = said(caplog)
    assert "and 4 images were shown to it at 0.3 to 0.6 m:" in line


def test_predict_shows_what_is_known_unless_told_otherwise(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network(tmp_path / "a.pth", (0.2, 0.3))
    image = data / "test/ABC_000_RGB.png"
    start = [str(image), "--gsd", "0.9", "--model", str(model), "--tta", "null"]
    assert run_command(predict, [*start, "--out", str(tmp_path / "p")]) == 0
    assert not said(caplog)
    assert run_command(predict, [*start, "--out", str(tmp_path / "q"), "--native-gsd"]) == 0
    (line,) = said(caplog)
    assert "and 1 image was shown to it at 0.9 m:" in line


def test_python_is_warned_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = geopose.load(network(tmp_path / "a.pth", (0.2, 0.3)), tta=None)
    model.predict(np.zeros((40, 50, 3), np.uint8), 0.3)
    assert not said(caplog)
    model.predict(np.zeros((40, 50, 3), np.uint8), 0.9)
    model.predict(np.zeros((40, 50, 3), np.uint8), 0.8)
    (line,) = said(caplog)  # not for every image of a loop
    assert "and 1 image was shown to it at 0.9 m:" in line
