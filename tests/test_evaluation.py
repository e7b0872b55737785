"""evaluate.py as a user runs it: the score of real files, and everything that it must refuse."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from geopose.cli import run_command
from geopose.data.heights import write_agl_cm
from geopose.data.vflow import write_vflow
from geopose.evaluation import evaluate, format_table, main
from geopose.metrics import ScoreAccumulator

ROOT = Path(__file__).parents[1]
IDS = ["ARG_aa_1", "ARG_bb", "JAX_cc"]


def write_pose(folder: Path, image_id: str, agl_m: np.ndarray, scale: float, angle: float) -> None:
    """One image's two files."""
    write_agl_cm(folder / f"{image_id}_AGL.tif", agl_m, allow_nodata=True)
    write_vflow(folder / f"{image_id}_VFLOW.json", scale, angle)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(predictions, truth) of three images; the truth also holds images and notes."""
    rng = np.random.default_rng(0)
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    predictions.mkdir()
    truth.mkdir()
    for image_id in IDS:
        agl_m = np.round(rng.gamma(2.0, 8.0, (24, 32)), 2)
        predicted = np.round(np.abs(agl_m + rng.normal(0, 2, agl_m.shape)), 2)
        agl_m[:3] = np.nan
        write_pose(truth, image_id, agl_m, 0.8, 1.0)
        write_pose(predictions, image_id, predicted, 0.85, 1.1)
        (truth / f"{image_id}_RGB.png").write_bytes(b"not looked at")
    (truth / "notes.txt").write_text("not looked at")
    return predictions, truth


def test_score_of_files_is_the_score_of_their_content(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    accumulator = ScoreAccumulator()
    for image_id in IDS:
        p, t = (
            tifffile.imread(folder / f"{image_id}_AGL.tif").astype(float)
            for folder in (predictions, truth)
        )
        t[t == 65535] = np.nan
        flow = json.loads((predictions / f"{image_id}_VFLOW.json").read_text())
        pose = (p / 100, flow["scale"] * 100, flow["angle"])
        accumulator.update(image_id[:3], *pose, t / 100, 0.8, 1.0)
    result, expected = evaluate(predictions, truth), accumulator.result()
    assert result["score"] == pytest.approx(expected["score"], rel=1e-12)
    assert list(result["cities"]) == ["ARG", "JAX"]
    for city in ("ARG", "JAX"):
        assert result["cities"][city]["mean"]["angle_deg"] == pytest.approx(math.degrees(0.1))
        assert result["cities"][city]["rms"]["scale_px_per_m"] == pytest.approx(0.05)
        assert result["cities"][city]["rms"] == pytest.approx(expected["cities"][city]["rms"])


def test_json_and_table_of_the_real_command(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "score.json"
    command = [sys.executable, "evaluate.py", *map(str, folders), "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(target.read_text())
    assert set(result) == {"score", "cities"}
    for city in result["cities"].values():
        assert set(city) == {"agl_r2", "vflow_r2", "score", "mean", "rms"}
        names = {"angle_deg", "scale_px_per_m", "mag_px", "epe_px", "agl_m"}
        assert set(city["mean"]) == set(city["rms"]) == names
    assert f"score {result['score']:.4f}" in done.stdout
    assert f"{result['cities']['ARG']['agl_r2']:.4f}" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["score.json"]


def test_truth_against_itself_scores_one(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    for image_id in IDS:  # no-data may not be predicted: fill it with anything
        agl_cm = tifffile.imread(truth / f"{image_id}_AGL.tif")
        agl_cm[agl_cm == 65535] = 123
        write_pose(predictions, image_id, agl_cm / 100.0, 0.8, 1.0)
    assert evaluate(predictions, truth)["score"] == 1.0


def _remove(name: str) -> Callable[[Path, Path], object]:
    return lambda predictions, truth: (predictions / name).unlink()


def _write(name: str, content: bytes) -> Callable[[Path, Path], object]:
    return lambda predictions, truth: (predictions / name).write_bytes(content)


def _agl(agl_cm: np.ndarray) -> Callable[[Path, Path], object]:
    return lambda predictions, truth: tifffile.imwrite(predictions / "ARG_bb_AGL.tif", agl_cm)


def _one_unknown() -> np.ndarray:
    agl_cm = np.full((24, 32), 100, np.uint16)
    agl_cm[0, 0] = 65535  # where the truth is unknown too: still no number
    return agl_cm


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_remove("ARG_bb_AGL.tif"), ["ARG_bb_AGL.tif", "missing"]),
        (_remove("JAX_cc_VFLOW.json"), ["JAX_cc_VFLOW.json", "missing"]),
        (_write("OMA_1_AGL.tif", b""), ["OMA_1_AGL.tif", "extra"]),
        (_write("OMA_1_VFLOW.json", b""), ["OMA_1_VFLOW.json", "extra"]),
        (_write("ARG_bb_AGL (1).tif", b""), ["ARG_bb_AGL (1).tif", "extra"]),
        (_agl(np.zeros((32, 24), np.uint16)), ["ARG_bb_AGL.tif", "24 x 32", "32 x 24"]),
        (_agl(np.zeros((12, 16), np.uint16)), ["ARG_bb_AGL.tif", "16 x 12"]),
        (_agl(_one_unknown()), ["ARG_bb_AGL.tif", "65535"]),
        (_agl(np.zeros((24, 32), np.float32)), ["ARG_bb_AGL.tif", "float32"]),
        (_agl(np.zeros((24, 32), np.uint8)), ["ARG_bb_AGL.tif", "uint8"]),
        (_agl(np.zeros((24, 32, 3), np.uint16)), ["ARG_bb_AGL.tif", "3 channels"]),
        (_write("ARG_bb_AGL.tif", b"II*\0garbage"), ["ARG_bb_AGL.tif"]),
        (_write("ARG_bb_VFLOW.json", b'{"scale": NaN, "angle": 1}'), ["ARG_bb_VFLOW.json"]),
        (_write("ARG_bb_VFLOW.json", b'{"scale": 1, "angle": 1e999}'), ["ARG_bb_VFLOW.json"]),
        (_write("ARG_bb_VFLOW.json", b'{"scale": 1}'), ["ARG_bb_VFLOW.json", "angle"]),
        (_write("ARG_bb_VFLOW.json", b"{"), ["ARG_bb_VFLOW.json"]),
        (lambda p, t: (t / "ARG_bb_VFLOW.json").unlink(), ["TRUTH", "ARG_bb"]),
        (lambda p, t: [f.unlink() for f in t.glob("*_AGL.tif")], ["TRUTH", "_AGL.tif"]),
        (lambda p, t: p.rename(p.with_name("gone")), ["predictions", "not a directory"]),
    ],
)
def test_refuses_by_name_in_one_line_and_writes_nothing(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path, Path], object],
    named: list[str],
) -> None:
    damage(*folders)
    target = tmp_path / "score.json"
    assert run_command(main, [*map(str, folders), "--json", str(target)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    for words in named:
        assert words in printed.err
    assert not target.exists()


def test_json_beside_the_predictions_does_not_spoil_the_next_run(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*map(str, folders), "--json", str(folders[0] / "score.json")]
    assert run_command(main, arguments) == 0
    assert run_command(main, arguments) == 0


@pytest.mark.parametrize("target", ["no_such_folder/score.json", ".", "/proc/score.json"])
def test_impossible_json_target_is_noticed_first(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert run_command(main, [*map(str, folders), "--json", str(tmp_path / target)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --json")
    assert printed.err.count("\n") == 1  # no progress bar: nothing was scored
    assert printed.out == ""


def test_truth_that_does_not_vary_is_undefined_not_one(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        write_pose(folder, "JAX_cc", np.full((24, 32), 5.0), 0.8, math.pi / 4)
    target = tmp_path / "score.json"
    assert run_command(main, [*map(str, folders), "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["score"] is None
    assert result["cities"]["JAX"]["agl_r2"] is None
    assert result["cities"]["ARG"]["score"] is not None
    assert "undefined" in capsys.readouterr().out


def test_table_lines_up() -> None:
    accumulator = ScoreAccumulator()
    for name in ("ARG", "LONGNAME"):
        accumulator.update(name, [[5.0, 700.0]], 1.0, 0.0, [[0.0, 10.0]], 1.0, 0.0)
    lines = format_table(accumulator.result()).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert len({len(line) for line in lines[5:8]}) == 1
