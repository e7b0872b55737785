"""Gains of heights and flow: found, kept in files, and gone by wherever a file is read."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geopose.calibration.fit import ImageSums, best_gains, fit, score_with
from geopose.checkpoints.__main__ import main
from geopose.checkpoints.deepness import HeightNetwork
from geopose.checkpoints.formats.facts import NO_GAINS, Gains
from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.checkpoints.load import load_model, read_facts
from geopose.cli import run_command
from geopose.data.heights import read_agl_m, write_agl_cm
from geopose.data.layouts.splits import read_split
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow, write_vflow
from geopose.errors import InputError
from geopose.inference.build import load_engine
from geopose.inference.predict.ensemble import Member
from geopose.inference.submission.command import submit
from geopose.metrics import ScoreAccumulator
from tests.tiny_data import write_data_dir
from tests.tiny_run import tiny_payload, write_checkpoint, write_config, write_split

HEIGHT_GAIN, FLOW_GAIN = 1.25, 1.6
_Pose = tuple[NDArray[np.float32], float, float]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))


def calibrate(*arguments: object) -> int:
    return run_command(main, ["calibrate", *map(str, arguments)])


def _payload(seed: int = 1) -> dict[str, object]:
    payload = tiny_payload(seed)
    payload["checkpoint_data"]["config"]["dataset"] = {"fold": 1, "num_folds": 2}
    return payload


def _answer(path: Path, rgb: torch.Tensor, gsd_m: float = 0.5) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return Member(load_model(path)).eval()(rgb, torch.tensor([[gsd_m]]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pth, and images in `data` whose truth is what it says, times the gains."""
    folder = tmp_path_factory.mktemp("calibrate")
    save_checkpoint(folder / "a.pth", _payload())
    write_data_dir(folder / "data", ["AAA", "BBB"] * 4, size=(64, 96), suffix=".png")
    _truth_from(folder / "a.pth", folder / "data", HEIGHT_GAIN, FLOW_GAIN)
    return folder


def _truth_from(checkpoint: Path, data: Path, height_gain: float, flow_gain: float) -> None:
    for path in sorted((data / "train").glob("*_RGB.png")):
        rgb = torch.from_numpy(read_rgb(path)).permute(2, 0, 1)[None]
        agl_m, _, scale, direction = _answer(checkpoint, rgb)
        name = path.name.removesuffix("_RGB.png")
        true_m = (height_gain * agl_m[0, 0]).numpy().astype(np.float32)
        write_agl_cm(data / "train" / f"{name}_AGL.tif", true_m)
        angle = math.atan2(float(direction[0, 0]), float(direction[0, 1])) % (2 * math.pi)
        scale_px_per_m = float(scale) * flow_gain / height_gain
        write_vflow(data / "train" / f"{name}_VFLOW.json", scale_px_per_m, angle)


@pytest.fixture(scope="module")
def done(made: Path) -> Path:
    """The same with b.pth, calibrated."""
    assert calibrate(made / "a.pth", made / "b.pth", "--data-dir", made / "data") == 0
    return made


def _gains(path: Path) -> Gains:
    return load_model(path).gains


def test_the_factor_of_a_network_that_says_too_little_is_found(done: Path) -> None:
    assert _gains(done / "a.pth") == NO_GAINS
    assert _gains(done / "b.pth") == pytest.approx((HEIGHT_GAIN, FLOW_GAIN), rel=2e-3)
    facts = read_facts(done / "b.pth")["calibration"]
    assert (facts["split"], facts["images"]) == ("train, fold 1", 4)
    assert facts["score"]["before"] < 0.9 < 0.999 < facts["score"]["after"] <= 1
    assert facts["score"]["halves_after"] > 0.999


def test_weights_stay_and_outputs_are_multiplied(done: Path) -> None:
    first, second = (load_checkpoint(done / name) for name in ("a.pth", "b.pth"))
    assert second["checkpoint_data"]["config"] == first["checkpoint_data"]["config"]
    for name, weights in first["model_state_dict"].items():
        assert torch.equal(weights, second["model_state_dict"][name])
    rgb = torch.randint(0, 255, (1, 3, 40, 56), dtype=torch.uint8)
    before, after = (_answer(done / name, rgb) for name in ("a.pth", "b.pth"))
    agl, magnitude = _gains(done / "b.pth")
    for one, other, gain in zip(before, after, (agl, magnitude, magnitude / agl, 1), strict=True):
        torch.testing.assert_close(other, one * gain)


def test_info_says_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["info", str(done / "b.pth"), str(done / "a.pth")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "calibration:" in line]
    assert len(lines) == 1
    assert "heights x 1.2" in lines[0]
    assert "flow x 1.6" in lines[0]
    assert "4 images (train, fold 1, views null)" in lines[0]


def _submitted(folder: Path, model: Path, data: Path) -> dict[str, tuple[NDArray, float]]:
    folder.mkdir(exist_ok=True)
    config = write_config(folder / "c.yaml", [model])
    assert run_command(submit, [str(config), "--data-dir", str(data)]) == 0
    found = {}
    for path in sorted((folder / "out/submission").glob("*_AGL.tif")):
        flow = path.with_name(path.name.replace("_AGL.tif", "_VFLOW.json"))
        found[path.name] = read_agl_m(path), read_vflow(flow)[0]
    return found


def test_submit_goes_by_it(done: Path, tmp_path: Path) -> None:
    data = write_split(tmp_path / "data", [(64, 64), (40, 71)])
    plain, calibrated = (
        _submitted(tmp_path / name, done / f"{name}.pth", data) for name in ("a", "b")
    )
    agl, magnitude = _gains(done / "b.pth")
    for name, (agl_m, scale) in plain.items():
        np.testing.assert_allclose(calibrated[name][0], agl_m * agl, atol=0.012)
        assert calibrated[name][1] == pytest.approx(scale * magnitude / agl, rel=1e-5)
    # Another calibration under the same name is another model: nothing of the first is kept.
    moved = tmp_path / "a/model.pth"
    moved.write_bytes((done / "a.pth").read_bytes())
    _submitted(tmp_path / "a", moved, data)
    moved.write_bytes((done / "b.pth").read_bytes())
    for name, (agl_m, scale) in _submitted(tmp_path / "a", moved, data).items():
        np.testing.assert_array_equal(agl_m, calibrated[name][0])
        assert scale == calibrated[name][1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])  # .onnx files: see test_onnx
def test_an_exported_file_keeps_it(done: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"c{suffix}"
    assert run_command(main, ["export", str(done / "b.pth"), str(out)]) == 0
    assert _gains(out) == _gains(done / "b.pth")
    again = tmp_path / f"d{suffix}"
    assert calibrate(out, again, "--data-dir", done / "data", "--images", 4) == 0
    assert _gains(again) == _gains(out)  # anew, and not on top of it


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs the extra int8")
def test_a_file_in_8_bits_keeps_it(done: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "b.int8", str(done / "data")
    given = ["--data-dir", data, "--images", "2", "--max-drop", "1", "--tta", "null"]
    assert run_command(main, ["quantize", str(done / "b.pth"), str(out), *given]) == 0
    assert load_engine(out).gains == _gains(done / "b.pth")


def test_heights_for_the_plugin_are_calibrated(done: Path) -> None:
    rgb = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before, after = (
            HeightNetwork(load_model(done / name), 0.5)(rgb) for name in ("a.pth", "b.pth")
        )
    torch.testing.assert_close(after, before * _gains(done / "b.pth").agl)


def test_averages_are_of_equally_calibrated_files(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(done / "a.pth"), str(done / "b.pth")]
    assert run_command(main, ["average", *files, "-o", str(tmp_path / "c.pth")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be averaged, they differ in calibration" in error
    same = [files[1], files[1], "-o", str(tmp_path / "d.pth")]
    assert run_command(main, ["average", *same]) == 0
    assert _gains(tmp_path / "d.pth") == _gains(done / "b.pth")


def test_a_network_that_is_right_is_not_written(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_dir(tmp_path / "data", ["AAA", "BBB"] * 4, size=(64, 96), suffix=".png")
    _truth_from(made / "a.pth", tmp_path / "data", 1.0, 1.0)
    for path in (tmp_path / "data/train").glob("*_AGL.tif"):  # what no gain can mend
        agl_m = read_agl_m(path)
        agl_m[::2] *= 1.02 if "00" in path.name and int(path.name[4:7]) % 4 < 2 else 0.98
        write_agl_cm(path, agl_m)
    given = [made / "a.pth", tmp_path / "b.pth", "--data-dir", tmp_path / "data"]
    assert calibrate(*given, "--split", "train") == 1
    assert "does not rise" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "b.pth").exists()
    assert calibrate(*given, "--split", "train", "--force") == 0
    assert _gains(tmp_path / "b.pth") == pytest.approx((1.0, 1.0), abs=0.02)


def test_a_gain_that_makes_up_for_wrong_directions_is_told(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data_dir(tmp_path / "data", ["AAA", "BBB"] * 4, size=(64, 96), suffix=".png")
    _truth_from(made / "a.pth", tmp_path / "data", 1.5, 1.5)
    for path in (tmp_path / "data/train").glob("*_VFLOW.json"):
        scale, angle = read_vflow(path)
        write_vflow(path, scale, (angle + 1.0) % (2 * math.pi))
    given = ["--data-dir", tmp_path / "data", "--split", "train"]
    assert calibrate(made / "a.pth", tmp_path / "b.pth", *given) == 0
    assert "directions are off by 57 degrees" in caplog.text
    found = _gains(tmp_path / "b.pth")
    assert found == pytest.approx((1.5, 1.5 * math.cos(1.0)), rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--split", "train", "--fold", "1"], "--fold goes with"),
        (["--fold", "5"], "dataset.fold is 5"),
        (["--fold", "one"], "whole number"),
        (["--images", "0"], "--images"),
    ],
)
def test_what_cannot_be_is_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    out = tmp_path / "b.pth"
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(calibrate(made / "a.pth", out, "--data-dir", made / "data", *arguments))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert word in error
    assert not out.exists()


def test_a_file_without_a_fold_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "a.pth")
    given = [tmp_path / "a.pth", tmp_path / "b.pth", "--data-dir", made / "data"]
    assert calibrate(*given) == 2
    assert "give --fold N" in capsys.readouterr().err.splitlines()[-1]


def test_the_held_out_places_are_those_of_the_training(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = _payload()
    dataset = {"fold": 1, "num_folds": 2, "fold_split": "place", "places": str(tmp_path / "p.csv")}
    payload["checkpoint_data"]["config"]["dataset"] = dataset  # type: ignore[index]
    save_checkpoint(tmp_path / "a.pth", payload)
    given = [tmp_path / "a.pth", tmp_path / "b.pth", "--data-dir", made / "data"]
    assert calibrate(*given) == 2  # one line, and no traceback
    assert "p.csv" in capsys.readouterr().err.splitlines()[-1]
    records = read_split(made / "data", "train")
    rows = [f"{record.image_id},{number % 4}" for number, record in enumerate(records)]
    (tmp_path / "p.csv").write_text("\n".join(["id,place", *rows]) + "\n")
    assert calibrate(*given) == 0
    assert _gains(tmp_path / "b.pth") == pytest.approx((HEIGHT_GAIN, FLOW_GAIN), rel=2e-3)


@pytest.mark.parametrize(
    "gains", [1.2, {"agl": 1.2}, {"agl": 0.0, "magnitude": 1.0}, {"agl": 1.0, "magnitude": "2"}]
)
def test_gains_that_are_none_are_refused(tmp_path: Path, gains: object) -> None:
    save_checkpoint(tmp_path / "a.pth", {**_payload(), "calibration": gains})
    with pytest.raises(InputError, match="calibration must hold agl and magnitude"):
        load_model(tmp_path / "a.pth")


def _pose(rng: np.random.Generator, gain: float = 1.0) -> tuple[_Pose, _Pose]:
    true_m = rng.uniform(0, 30, (20, 30)).astype(np.float32)
    said_m = (true_m * gain * rng.uniform(0.8, 1.1, true_m.shape)).astype(np.float32)
    true_m[:3, :4] = np.nan
    return (said_m, rng.uniform(0.5, 1), rng.uniform(0, 1)), (
        true_m, rng.uniform(0.5, 1), rng.uniform(0, 1),
    )  # fmt: skip


def test_the_score_is_the_official_one_and_the_gains_are_its_maximum() -> None:
    rng = np.random.default_rng(0)
    poses = [(city, *_pose(rng, 0.7)) for city in ("A", "A", "B", "C", "B", "C")]
    images = [ImageSums.of(*pose) for pose in poses]
    best = best_gains(images)
    for gains in (NO_GAINS, Gains(1.3, 0.9), best):
        official = ScoreAccumulator()
        for city, (agl_m, scale, angle), true in poses:
            ratio = gains.magnitude / gains.agl
            official.update(city, agl_m.astype(float) * gains.agl, scale * ratio, angle, *true)
        assert score_with(images, gains) == pytest.approx(official.result()["score"], abs=1e-6)
    for change in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        other = Gains(best.agl + change[0], best.magnitude + change[1])
        assert score_with(images, other) < score_with(images, best)


def test_one_image_says_nothing_of_others() -> None:
    rng = np.random.default_rng(0)
    found = fit([ImageSums.of("A", *_pose(rng, 0.7))])
    assert found.gains.agl > 1.2
    assert not found.helps
    assert set(found.summary()) == {"before", "after"}
    json.dumps(found.summary(), allow_nan=False)


def test_flat_truth_and_no_prediction_decide_nothing() -> None:
    flat = np.zeros((4, 4), np.float32)
    images = [ImageSums.of("A", (flat, 1.0, 0.0), (flat, 1.0, 0.0))] * 2
    assert best_gains(images) == NO_GAINS
    assert not fit(images).helps
