"""Which gsd a network has learned from: training writes it, files carry it, predictions know it."""

from pathlib import Path

import numpy as np
import pytest

from geopose.augment.levels import LEVELS
from geopose.augment.spatial import draw_map
from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.checkpoints.load import load_model
from geopose.checkpoints.remote.fetch import Source
from geopose.cli import run_command
from geopose.data.folds import split_fold
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError
from geopose.geometry import transform_gsd
from geopose.inference.build import load_entry
from geopose.inference.config import ModelEntry
from geopose.inference.predict.ensemble import Member
from tests.tiny_run import tiny_payload
from tests.training_run import train

RANGE = [0.3, 0.5]


@pytest.mark.parametrize("level", list(LEVELS))
def test_factors_are_those_of_the_draws(level: str) -> None:
    spatial = LEVELS[level].spatial
    rng = np.random.default_rng(0)
    drawn = [transform_gsd(1.0, draw_map(spatial, rng).linear) for _ in range(5000)]
    least, largest = spatial.gsd_factors
    assert least <= min(drawn) + 1e-9
    assert max(drawn) <= largest + 1e-9
    assert (min(drawn), max(drawn)) == pytest.approx((least, largest), rel=0.03)


def test_training_writes_the_range_of_what_it_learns_from(sample_dir: Path, tmp_path: Path) -> None:
    more = ("train.epochs=1", "train.augmentations=light", "train.downsample=2")
    run_dir = train(sample_dir, tmp_path / "run", *more)
    learned, _ = split_fold(read_split(sample_dir, "train"), 0, "stratified", 3)
    images = [record.gsd_m for record in learned]
    expected = min(images) * 0.9 / 1.1, max(images) / (0.9 * 0.9)
    for name in ("best.pth", "last.pth"):
        loaded = load_model(run_dir / "checkpoints_mean_r2" / name)
        assert loaded.gsd_range_m == pytest.approx(expected)  # of images as given, not halved


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_exported_files_carry_range_and_recipe(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "a.pth", {**tiny_payload(), "gsd_range_m": RANGE})
    out = tmp_path / f"out{suffix}"
    recipe = ["--recipe", "forty nights on one laptop"]
    assert run_command(main, ["export", str(tmp_path / "a.pth"), str(out), *recipe]) == 0
    assert load_model(out).gsd_range_m == (0.3, 0.5)
    capsys.readouterr()
    assert run_command(main, ["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0.3 to 0.5 m/px\n" in said
    assert "forty nights on one laptop" in said


def test_members_know_it_for_images_as_given(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", {**tiny_payload(), "gsd_range_m": RANGE})
    source = (Source(str(tmp_path / "a.pth")),)
    assert Member(load_entry(ModelEntry(source))).gsd_range_m == (0.3, 0.5)
    halved = load_entry(ModelEntry(source, downsample=2))  # sees images of twice the gsd
    assert Member(halved).gsd_range_m == pytest.approx((0.15, 0.25))


def test_a_file_of_this_toolkit_that_says_nothing_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["dataset"] = {"fold": 0}
    save_checkpoint(tmp_path / "a.pth", payload)
    assert load_model(tmp_path / "a.pth").gsd_range_m is None
    assert run_command(main, ["info", str(tmp_path / "a.pth")]) == 0
    assert "m/px" not in capsys.readouterr().out


def test_a_published_file_has_what_its_sensors_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["dataset"] = {"data_dir": "/data", "fold": 0}
    save_checkpoint(tmp_path / "a.pth", {**payload, "label_downsample": None})
    assert load_model(tmp_path / "a.pth").gsd_range_m == (0.3, 0.6)
    assert run_command(main, ["info", str(tmp_path / "a.pth")]) == 0
    assert "0.3 to 0.6 m/px (what the challenge's sensors give" in capsys.readouterr().out


@pytest.mark.parametrize("said", [[0.5, 0.3], [0, 1], [0.3], "0.3", [0.3, float("inf")], {}])
def test_what_is_no_range_is_one_line(said: object, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", {**tiny_payload(), "gsd_range_m": said})
    with pytest.raises(InputError, match=r"a\.pth: gsd_range_m is"):
        load_model(tmp_path / "a.pth")
