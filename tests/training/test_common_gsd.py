"""A network that is shown every image at one gsd: from training to predictions and other files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.checkpoints.load import load_model
from geopose.checkpoints.remote.fetch import Source
from geopose.cli import run_command
from geopose.data.folds import split_fold
from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError
from geopose.inference.build import load_entry
from geopose.inference.config import ModelEntry
from geopose.inference.predict.ensemble import Member
from geopose.quantization.calibration import Calibration
from tests.tiny_data import write_data_dir
from tests.tiny_run import tiny_payload
from tests.training_run import train

GSD_M = 0.4
GSDS = [0.5, 0.5, 0.25, 0.4, 0.32, 0.5]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of one size and several gsds."""
    folder = tmp_path_factory.mktemp("gsds") / "data"
    data_dir = write_data_dir(folder, ["JAX", "OMA"] * 3, (96, 64))
    rows = (data_dir / "metadata.csv").read_text().splitlines()
    changed = [f"{row[:-3]}{gsd_m}" for row, gsd_m in zip(rows[1:], GSDS, strict=True)]
    (data_dir / "metadata.csv").write_text("\n".join([rows[0], *changed]) + "\n")
    return data_dir


@pytest.fixture(scope="module")
def run_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for an epoch, validated in batches."""
    more = (
        f"train.gsd_m={GSD_M}", "train.augmentations=light",
        "train.crop_size=48", "dataset.num_folds=2", "train.epochs=1", "train.plain_epochs=1",
        "train.loaders.valid.batch_size=4", "runner.top_k=1",
    )  # fmt: skip
    return train(data_dir, tmp_path_factory.mktemp("run") / "run", *more)


def payload(gsd_m: object, **changes: object) -> dict:
    found = tiny_payload(3, **changes)
    found["checkpoint_data"]["config"]["train"]["gsd_m"] = gsd_m
    return found


def test_validation_takes_all_images_at_their_new_sizes(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert np.isfinite(float(rows[-1]["valid/metrics/mean_r2"]))


def test_the_file_says_it_and_predictions_follow(
    run_dir: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run_dir / "checkpoints_mean_r2/best.pth"
    loaded = load_model(best)
    assert loaded.gsd_m == GSD_M
    learned, _ = split_fold(read_split(data_dir, "train"), 0, "stratified", 2)
    gsds = [record.gsd_m for record in learned]  # of images as given
    expected = (min(gsds) * 0.9 / 1.1, max(gsds) / (0.9 * 0.9))
    assert loaded.gsd_range_m == pytest.approx(expected)
    assert run_command(main, ["info", str(best)]) == 0
    assert "brought to: 0.4 m/px" in " ".join(capsys.readouterr().out.split())
    chosen = Member(load_entry(ModelEntry((Source(str(best)),))))
    image = torch.zeros(1, 3, 96, 64, dtype=torch.uint8)
    with torch.inference_mode():
        fine, coarse = (chosen(image, torch.tensor([[gsd_m]])) for gsd_m in (0.2, 0.8))
    assert fine.agl_m.shape == coarse.agl_m.shape == (1, 1, 96, 64)
    # One flat grey: the network sees the same but for its borders, and pixels of another length.
    ratio = fine.scale_px_per_m / coarse.scale_px_per_m
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0), rtol=0.3, atol=0)


def test_whole_images_that_no_longer_stack_are_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set train\.crop_size, or batch_size=1"):
        train(data_dir, tmp_path / "run", f"train.gsd_m={GSD_M}", "train.crop_size=null")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (50, r"train\.gsd_m is 50 metres per pixel.* centimetres, write 0\.5"),
        (0.06, r"row 3 .*: 0\.5 m per pixel.*train\.gsd_m=0\.06 would enlarge 8 times"),
    ],
)
def test_what_can_be_no_gsd_for_these_images_is_refused(
    data_dir: Path, tmp_path: Path, value: float, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        train(data_dir, tmp_path / "run", f"train.gsd_m={value}")


def test_the_other_way_to_shrink_is_refused_beside_it(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.gsd_m=0\.4 and train\.downsample=2: .*=1"):
        train(data_dir, tmp_path / "run", f"train.gsd_m={GSD_M}", "train.downsample=2")
    found = payload(0.4)
    found["checkpoint_data"]["config"]["train"]["downsample"] = 2
    save_checkpoint(tmp_path / "a.pth", found)
    with pytest.raises(InputError, match=r"a\.pth: train\.gsd_m is set, so train\.downsample must"):
        load_model(tmp_path / "a.pth")


def test_a_run_that_knew_no_such_key_goes_on_without_and_is_not_given_one(
    sample_dir: Path, tmp_path: Path
) -> None:
    last = train(sample_dir, tmp_path / "run", "train.epochs=1") / "checkpoints_mean_r2/last.pth"
    older = torch.load(last, weights_only=False)
    del older["checkpoint_data"]["config"]["train"]["gsd_m"]
    torch.save(older, last)
    with pytest.raises(InputError, match=r"train\.gsd_m=None, not 0\.4"):
        train(sample_dir, tmp_path / "run", "train.epochs=2", "train.gsd_m=0.4")
    train(sample_dir, tmp_path / "run", "train.epochs=2")
    assert load_checkpoint(last)["checkpoint_data"]["config"]["train"]["gsd_m"] is None


def test_networks_of_unequal_gsds_are_not_averaged(tmp_path: Path) -> None:
    files = []
    for number, gsd_m in enumerate((0.4, None)):
        files.append(tmp_path / f"{number}.pth")
        save_checkpoint(files[-1], payload(gsd_m))
    with pytest.raises(InputError, match="differ in common gsd"):
        load_model(files)


@pytest.mark.parametrize("value", ["0.4", 0, -1.0, 1e-300, 1e300, float("inf"), True, [0.4]])
def test_a_file_with_another_value_is_refused(value: object, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", payload(value))
    with pytest.raises(InputError, match=r"a\.pth: train\.gsd_m is .*length from 0\.01"):
        load_model(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_exported_files_keep_it(suffix: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", payload(0.4))
    command = ["export", str(tmp_path / "a.pth"), str(tmp_path / f"b{suffix}")]
    assert run_command(main, command) == 0
    assert load_model(tmp_path / f"b{suffix}").gsd_m == 0.4


def test_the_plugin_of_qgis_is_not_given_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "a.pth", payload(0.4))
    command = ["export", "a.pth", "out.onnx", "--for", "deepness", "--gsd"]
    command[1:3] = [str(tmp_path / name) for name in command[1:3]]
    assert run_command(main, [*command, "0.5"]) == 2
    error = capsys.readouterr().err
    assert "brought to 0.4 m/px" in error
    assert "give --gsd 0.4" in error
    assert not (tmp_path / "out.onnx").exists()


def test_the_only_gsd_of_a_network_is_no_strange_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path / "a.pth", {**payload(0.8), "gsd_range_m": [0.3, 0.6]})
    command = ["export", "a.pth", "out.onnx"]
    command[1:] = [str(tmp_path / name) for name in command[1:]]
    assert run_command(main, [*command, "--for", "deepness", "--gsd", "0.8"]) == 0
    assert "knows less" not in caplog.text


def test_8_bits_are_calibrated_on_what_is_shown(tmp_path: Path, data_dir: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", payload(0.25))
    chosen = Member(load_model(tmp_path / "a.pth"))
    records: list[ImageRecord] = read_split(data_dir, "train")
    shown = Calibration(records, chosen, 96).inputs(0)  # 96 x 64 px of 0.5 m
    assert sorted(shown["image"].shape[-2:]) == [128, 192]
    np.testing.assert_allclose(shown["gsd"], 0.25)


def test_old_checkpoints_have_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pth", tiny_payload())
    assert load_checkpoint(tmp_path / "a.pth")
    assert load_model(tmp_path / "a.pth").gsd_m is None
