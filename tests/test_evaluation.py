"""evaluate.py as a user runs it: the score of real files, and everything that it must refuse."""

import json
import math
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
from tests.tiny_run import run_script

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
    done = run_script("evaluate.py", *folders, "--json", target)
    assert done.returncode == 0, done.stderr
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


@pytest.fixture
def tables(folders: tuple[Path, Path]) -> Path:
    """A data directory whose cities are others than the file names say."""
    data_dir = folders[1].parent / "data"
    data_dir.mkdir()
    (data_dir / "metadata.csv").write_text("id,city,gsd\n1,Rome,0.5\n2,Pisa,0.5\n3,Rome,0.5\n")
    rows = [f"{number},{name}_RGB.j2k" for number, name in enumerate(IDS, 1)]
    (data_dir / "geopose_test.csv").write_text("\n".join(["id,rgb", *rows]))
    return data_dir


def test_cities_are_those_of_the_metadata(
    folders: tuple[Path, Path], tables: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    predictions, truth = folders
    assert set(evaluate(predictions, truth)["cities"]) == {"ARG", "JAX"}
    expected = evaluate(predictions, truth, data_dir=tables)
    assert set(expected["cities"]) == {"Rome", "Pisa"}
    arguments = [str(predictions), str(truth)]
    assert run_command(main, arguments) == 0
    assert "cities from the file names" in capfd.readouterr().out
    assert run_command(main, [*arguments, "--data-dir", str(tables)]) == 0
    assert f"cities from {tables / 'metadata.csv'}" in capfd.readouterr().out
    for place in (truth, truth.parent):
        for table in tables.glob("*.csv"):
            (place / table.name).write_bytes(table.read_bytes())
        assert evaluate(predictions, truth) == expected
        for table in tables.glob("*.csv"):
            (place / table.name).unlink()


def test_metadata_that_knows_only_some_images_is_refused(
    folders: tuple[Path, Path], tables: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = tables / "geopose_test.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    for place in (tables, folders[1]):
        for name in ("metadata.csv", "geopose_test.csv"):
            (place / name).write_bytes((tables / name).read_bytes())
    for options in ([], ["--data-dir", str(tables)]):
        assert run_command(main, [*map(str, folders), *options]) == 2
        assert "1 of 3 images of TRUTH are not in it" in capfd.readouterr().err


def test_ids_in_the_metadata_may_be_the_names_themselves(folders: tuple[Path, Path]) -> None:
    rows = [f"{name}_RGB,Oslo,0.5" for name in IDS]
    (folders[1] / "metadata.csv").write_text("\n".join(["id,city,gsd", *rows]))
    assert set(evaluate(*folders)["cities"]) == {"Oslo"}


def test_a_score_among_the_predictions_spoils_no_later_evaluation(
    folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    first = folders[0] / "first.json"
    assert run_command(main, [*map(str, folders), "--json", str(first)]) == 0
    assert run_command(main, list(map(str, folders))) == 0
    assert run_command(main, [*map(str, folders), "--json", str(folders[0] / "b.json")]) == 0
    (folders[0] / "other.json").write_text('{"scale": 1, "angle": 2}')
    assert run_command(main, list(map(str, folders))) == 2
    assert "1 extra: other.json" in capfd.readouterr().err


def test_a_score_is_shown_though_its_file_cannot_be_written(
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert run_command(main, [*map(str, folders), "--json", str(tmp_path / "s.json")]) == 1
    output = capfd.readouterr()
    assert "\nscore 0." in output.out
    assert "s.json: No space left on device" in output.err


def test_hints(
    folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    predictions, truth = folders
    assert run_command(main, [str(truth), str(predictions)]) == 2
    assert "PREDICTIONS comes first" in capfd.readouterr().err
    flow = predictions / f"{IDS[0]}_VFLOW.json"
    before = flow.read_text()
    flow.write_text('{"scale": 0.0085, "angle": 63}')
    assert run_command(main, list(map(str, folders))) == 2
    assert f"{flow}: angle is 63, expected radians" in capfd.readouterr().err
    flow.write_text(before)
    for image_id in IDS:
        agl_m = tifffile.imread(predictions / f"{image_id}_AGL.tif") / 1e4
        write_pose(predictions, image_id, agl_m, 85.0, 1.1)
    assert run_command(main, list(map(str, folders))) == 0
    assert "are they metres, not centimetres?" in caplog.text
    assert "are they px per metre, not per cm?" in caplog.text
    (truth.parent / "out").mkdir()
    truth.rename(truth.parent / "out/submission")
    (truth.parent / "out/manifest.json").write_text("{}")
    assert run_command(main, [str(predictions), str(truth.parent / "out/submission")]) == 0
    assert "are the two swapped?" in caplog.text
    for image_id in IDS:
        path = truth.parent / f"out/submission/{image_id}_AGL.tif"
        write_agl_cm(path, np.full((24, 32), 0.2) + np.arange(32) / 100)
    assert run_command(main, [str(predictions), str(truth.parent / "out/submission")]) == 2
    assert "perhaps they are metres" in capfd.readouterr().err
