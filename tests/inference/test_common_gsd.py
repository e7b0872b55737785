"""Commands with a network that every image is brought to one ground sampling for."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.inference.images.command import predict
from geopose.inference.predict.ensemble import Member
from geopose.inference.submission.command import submit
from geopose.quantization import command as quantization
from tests.tiny_run import model_config, payload_of, write_checkpoint, write_config, write_split

SIZES = ((64, 64),) * 3  # of 0.3, 0.4 and 0.5 m


def at_one_gsd(path: Path, gsd_m: float) -> Path:
    """A tiny network's file that says so."""
    payload = payload_of(model_config(), 1)
    payload["checkpoint_data"]["config"]["train"]["gsd_m"] = gsd_m
    save_checkpoint(path, {**payload, "gsd_range_m": [0.3, 0.6]})
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], float]]:
    """Sizes and gsds that networks are shown."""
    shown: list[tuple[tuple[int, ...], float]] = []
    run = Member._run

    def spy(member, planes, gsd_m):
        shown.append((tuple(planes.shape[-2:]), float(gsd_m[0])))
        return run(member, planes, gsd_m)

    monkeypatch.setattr(Member, "_run", spy)
    return shown


def submitted(folder: Path, models: list[Path], *more: str) -> int:
    config = write_config(folder / "c.yaml", models, batch_size=3)
    return run_command(submit, [str(config), "--data-dir", str(folder / "data"), *more])


def test_images_of_several_gsds_go_through_in_one_batch(tmp_path: Path, seen: list) -> None:
    write_split(tmp_path / "data", SIZES)
    models = [at_one_gsd(tmp_path / "a.pth", 0.4), write_checkpoint(tmp_path / "b.pth")]
    assert submitted(tmp_path, models[:1]) == 0
    assert [size for size, _ in seen] == [(48, 48), (64, 64), (80, 80)]
    assert [gsd for _, gsd in seen] == pytest.approx([0.4] * 3)
    alone = [read_agl_m(path) for path in sorted((tmp_path / "out/submission").glob("*_AGL.tif"))]
    assert [agl_m.shape for agl_m in alone] == list(SIZES)
    seen.clear()
    assert submitted(tmp_path, models, "--force") == 0  # beside one that is shown them as given
    assert {size for size, _ in seen} == {(48, 48), (64, 64), (80, 80)}
    assert [size for size, _ in seen].count((64, 64)) == 1 + len(SIZES)


def test_an_image_that_is_too_coarse_fails_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "data", SIZES)
    table = tmp_path / "data/metadata.csv"
    table.write_text(table.read_text().replace("0.40", "4.00"))
    assert submitted(tmp_path, [at_one_gsd(tmp_path / "a.pth", 0.25)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 3 images failed" in line
    assert "ABC_001" in line
    assert "one of 4 m would be enlarged 16 times" in line
    done = sorted(path.name for path in (tmp_path / "out/submission").glob("*_AGL.tif"))
    assert done == ["ABC_000_AGL.tif", "ABC_002_AGL.tif"]


def test_a_dry_run_refuses_what_a_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "data", SIZES)
    model = at_one_gsd(tmp_path / "a.pth", 0.4)
    for more in ([], ["--dry-run"]):
        assert submitted(tmp_path, [model], "ensemble.tta=d4-ms", *more) == 2
        assert "views of several sizes mean nothing" in capsys.readouterr().err
    assert submitted(tmp_path, [model], "ensemble.tta=d4", "--dry-run") == 0


@pytest.mark.parametrize(
    ("gsd_m", "of_others", "expected"),
    [
        (0.84, False, (0.84, (80, 80))),  # its own: resized once, by who reads
        (0.84, True, (0.6, None)),  # what the other network knows; the rest is its own affair
    ],
)
def test_predict_resizes_once(
    tmp_path: Path,
    gsd_m: float,
    of_others: bool,
    expected: tuple,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given, forward = [], Member.forward

    def spy(member, image, gsd_m):
        given.append((float(gsd_m[0]), tuple(image.shape[-2:])))
        return forward(member, image, gsd_m)

    monkeypatch.setattr(Member, "forward", spy)
    image = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    place = rasterio.Affine(1.05, 0, 500_000, 0, -1.05, 3_350_000)
    options = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", crs=32617, transform=place, **options) as file:
        file.write(image)
    models = [at_one_gsd(tmp_path / "a.pth", gsd_m)]
    if of_others:
        plain = payload_of(model_config(), 2)
        save_checkpoint(tmp_path / "b.pth", {**plain, "gsd_range_m": [0.3, 0.6]})
        models.append(tmp_path / "b.pth")
    config = write_config(tmp_path / "c.yaml", models)
    arguments = [tmp_path / "a.tif", "--model", config, "--out", tmp_path / "out"]
    with caplog.at_level("WARNING"):
        assert run_command(predict, [*map(str, arguments), "--products", "agl,vflow"]) == 0
    known_m, size = expected
    assert [gsd for gsd, _ in given] == pytest.approx([known_m] * len(given), rel=0.01)
    assert size is None or {shape for _, shape in given} == {size}
    assert f"predicted at {known_m:g} m and brought back" in caplog.text
    assert ("0.3 to 0.6 m that the models know" in caplog.text) is of_others
    assert json.loads((tmp_path / "out/a_VFLOW.json").read_text())["scale"] > 0


def test_8_bits_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from geopose.checkpoints.__main__ import main

    monkeypatch.setattr(quantization, "has_openvino", lambda: True)
    monkeypatch.setattr(quantization, "check_nncf", lambda: None)
    monkeypatch.setattr(quantization, "read_split", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "data").mkdir()
    command = ["quantize", at_one_gsd(tmp_path / "a.pth", 0.4), tmp_path / "a.int8"]
    more = ["--data-dir", tmp_path / "data", "--tta", "ms"]
    assert run_command(main, [*map(str, command), *map(str, more)]) == 2
    assert "use those of d4" in capsys.readouterr().err
