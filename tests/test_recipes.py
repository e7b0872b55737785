"""benchmarks/recipes.py: recipes are merged, planned, trained, scored and resumed as it says."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import recipes
from benchmarks.recipe import runs
from benchmarks.recipe.plan import plan_for, speed_of
from benchmarks.recipe.table import read_rows, table
from benchmarks.recipe.terms import merged, network, read_recipes
from geopose.errors import InputError
from geopose.sample_city.writer import write_dataset
from tests.programs import ENVIRONMENT, ROOT, run_forked_program

TINY = """
common: [train=sample, train.crop_size=32, train.downsample=1, batch_size=2,
         model.encoder.name=test_efficientnet, optimizer.precision=fp32]
heads:
  published:
    orientation_head: {_target_: geopose.models.heads.BasicOrientationHead}
  flow:
    orientation_head: {_target_: geopose.models.heads.FlowOrientationHead, embedding_size: 4}
recipes:
  baseline: {heads: published, set: [loss=huber_cos, optimizer=adamw]}
  recommended: {heads: flow, set: [loss=flow_first, optimizer=sample, train.ema=0.9]}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cities of five scenes."""
    folder = tmp_path_factory.mktemp("recipes") / "data"
    write_dataset(folder, 5, 0, size=64, cities=("SYA", "SYB"))
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs are forked instead of started; their arguments are listed."""
    seen: list[str] = []

    def launch(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        seen.append(" ".join(arguments))
        return run_forked_program(arguments, ROOT, ENVIRONMENT)

    monkeypatch.setattr(runs, "launch", launch)
    return seen


def test_runs_resume_from_the_table(
    tmp_path: Path, data: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results/recipes.csv"
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["--file", str(tmp_path / "tiny.yaml"), "--data-dir", str(data), "--csv",
                 str(results), "--out", str(tmp_path / "out"), "--seeds", "1"]  # fmt: skip
    assert recipes.main([*arguments, "--calibrate", "--rounds", "1", "--updates", "1"]) == 0
    speeds = read_rows(results.with_name("recipes_speed.csv"))
    assert [row["recipe"] for row in speeds] == ["baseline", "recommended"]
    assert all(float(row["seconds_an_update"]) > 0 for row in speeds)
    minutes = str(2 * float(speeds[0]["seconds_an_update"]) / 60)
    assert recipes.main([*arguments, "--minutes", minutes, "--recipes", "baseline"]) == 0
    assert len(read_rows(results)) == 2
    assert recipes.main([*arguments, "--minutes", minutes]) == 0
    rows = read_rows(results)
    assert [(row["recipe"], row["split"], row["held_out"]) for row in rows] == [
        (name, split, "SYA")
        for name in ("baseline", "recommended")
        for split in ("same cities", "new city")
    ]
    assert [row["images"] for row in rows[:2]] == ["1", "5"]
    assert rows[0]["updates"] == "2"
    text = capsys.readouterr().out
    assert "**Same cities**" in text
    assert "| recommended | 1 |" in text
    assert len(started) == 4  # two to measure and one for each recipe
    assert "train.ema=0.9" in started[-1]
    assert recipes.main([*arguments, "--minutes", minutes, "--tta", "none", "fliplr"]) == 0
    again = read_rows(results)
    assert again[:4] == rows  # what is there is not scored again
    assert [row["tta"] for row in again] == ["none"] * 4 + ["fliplr"] * 4
    assert all(a["score"] != b["score"] for a, b in zip(rows, again[4:], strict=True))
    assert "views: fliplr" in capsys.readouterr().out
    last = next((tmp_path / "out").glob("recommended_seed0_*"))
    assert len(list(last.glob("checkpoints_kept_ema/*.pth"))) == 1


def test_a_failed_training_is_said_and_the_others_go_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    failed = subprocess.CompletedProcess([], 2, "", "much\nerror: no such loss\n")
    monkeypatch.setattr(runs, "launch", lambda _: failed)
    places = ["--file", str(tmp_path / "tiny.yaml"), "--data-dir", str(data), "--csv",
              str(tmp_path / "r.csv"), "--out", str(tmp_path / "out")]  # fmt: skip
    assert recipes.main([*places, "--crops", "16", "--seeds", "2"]) == 1
    error = capsys.readouterr().err
    assert error.count("error: no such loss") == 4
    assert "recommended seed 1" in error
    assert recipes.main([*places, "--minutes", "1", "--seeds", "1"]) == 1
    assert "baseline as it is now was never timed: run --calibrate first" in capsys.readouterr().err
    assert recipes.main([*places, "--crops", "16", "--tta", "none", "d5"]) == 1
    assert "unknown mode 'd5'" in capsys.readouterr().err


def test_a_group_drops_what_stood_below_it() -> None:
    said = ["optimizer=sample", "optimizer.lr=1", "train.ema=0.9", "optimizer=adamw", "train.ema=1"]
    assert merged(said) == ("optimizer=adamw", "train.ema=1")


def test_shipped_recipes_build_on_recommended() -> None:
    book = read_recipes(recipes.RECIPES)
    first, own = book.named("recommended"), book.named("published_optimizer")
    assert next(iter(book.recipes)) == "baseline"
    assert own.heads == first.heads == "flow"
    assert "train.ema=0.999" in own.overrides
    assert "optimizer=sample" not in own.overrides
    heads = network(ROOT / "configs", "sample_unet", book.heads["published"])
    assert heads["orientation_head"]["_target_"].endswith("BasicOrientationHead")
    assert "output_gain" not in heads["agl_head"]
    with pytest.raises(InputError, match="no recipe 'best'; there are baseline,"):
        book.named("best")


def test_plans_are_near_what_is_asked_for() -> None:
    for updates in (60, 500, 1250, 4321):
        plan = plan_for(69, 8, updates)
        assert plan.updates == plan.epochs * (69 * plan.crops_per_image // 8)
        assert abs(plan.updates - updates) <= max(0.02 * updates, 4)
        assert plan.epochs <= 14
    with pytest.raises(InputError, match="one epoch of 4000 scenes has 500"):
        plan_for(4000, 8, 100)


def test_speed_is_compared_within_a_round() -> None:
    def row(number: int, recipe: str, seconds: float) -> dict[str, str]:
        said = {"round": number, "recipe": recipe, "settings": "x", "seconds_an_update": seconds}
        return {key: str(value) for key, value in said.items()}

    rows = [row(1, "a", 1.0), row(1, "b", 2.0), row(2, "a", 10.0), row(2, "b", 20.0)]
    rows += [row(3, "a", 1.2), row(3, "b", 2.4)]
    assert speed_of(rows, ("a", "x"), ("b", "x")) == pytest.approx(2.4)
    assert speed_of(rows, ("a", "x"), ("a", "x")) == pytest.approx(1.2)


def test_the_table_says_what_lies_apart() -> None:
    def row(recipe: str, seed: int, score: float) -> dict[str, str]:
        figures = ("agl_r2", "flow_r2", "angle_deg", "scale_px_per_m", "agl_m", "updates")
        other = dict.fromkeys(figures, "1.0")
        return {
            "recipe": recipe,
            "seed": str(seed),
            "split": "new city",
            "score": str(score),
        } | other

    rows = [row("a", 0, 0.2), row("a", 1, 0.3), row("b", 0, 0.5), row("b", 1, 0.6)]
    text = table(rows, ["a", "b", "c"])
    assert "| b | 2 | 0.550 ± 0.071 | +0.300 ± 0.000 | yes |" in text
    assert "| c |" not in text
    wide = table([*rows[:2], row("b", 0, 0.1), row("b", 1, 0.9)], ["a", "b"])
    assert "| no |" in wide
