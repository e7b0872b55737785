"""Variances of the truth by city, which losses in the score's measure divide by, and the lean."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from geopose import keys
from geopose.augment.build import build_augmentation
from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.construct import plain
from geopose.convert import convert_directory
from geopose.data.dataset import GeoposeDataset
from geopose.data.heights import write_agl_cm
from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import read_split
from geopose.data.raw import RAW_SUFFIX
from geopose.data.targets import Variances, device_targets
from geopose.data.vflow import write_vflow
from geopose.losses.total import build_loss
from geopose.metrics import ScoreAccumulator
from geopose.training.data import variances
from geopose.training.data.loaders import build_loaders
from geopose.training.data.resources import Resources
from geopose.training.data.variances import LEAST_M2, LEAST_PX2, city_variances
from tests.tiny_data import write_data_dir
from tests.training.conftest import CITIES
from tests.training_run import composed, tiny_overrides, train


def test_variances_are_those_of_the_score(records: list[ImageRecord]) -> None:
    """Of images this small every pixel is looked at."""
    score = ScoreAccumulator()
    for sample in GeoposeDataset(records, "rgb"):
        agl_m = sample[keys.TARGET_AGL_MASK][0].numpy()
        flow = float(sample[keys.TARGET_VFLOW_SCALE]), float(sample[keys.TARGET_VFLOW_ANGLE])
        score.update(sample[keys.INPUT_CITY_NAME], np.nan_to_num(agl_m), *flow, agl_m, *flow)
    found = city_variances(records, ["AAA", "ZZZ"])
    assert set(found) == {"AAA", "BBB", "CCC", "ZZZ"}
    for city, state in score.state().items():
        pixels, _, m2 = state["agl_truth"]
        assert found[city].agl_m2 == pytest.approx(m2 / pixels, rel=1e-6)
        assert found[city].flow_px2 == pytest.approx(state["flow_truth"][2] / pixels, rel=1e-5)
    means = np.mean([list(found[city]) for city in ("AAA", "BBB", "CCC")], axis=0)
    assert list(found["ZZZ"]) == pytest.approx(list(means))


def test_some_images_and_lines_do_and_raw_files_say_the_same(tmp_path: Path) -> None:
    root = write_data_dir(tmp_path / "data", ["AAA"] * 40, (300, 260), ".png")
    records = read_split(root, "train")
    found = city_variances(records)
    read: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        flat = np.ones((300, 260), np.float32)
        patch.setattr(variances, "open_agl_m", lambda path: read.append(path) or flat)
        city_variances(records)
    assert len(read) == 32
    assert {read[0], read[-1]} == {records[0].agl, records[38].agl}
    convert_directory(root, 1, progress=False, format_name="raw")
    assert records[0].agl_file() == records[0].agl.with_suffix(RAW_SUFFIX)  # type: ignore[union-attr]
    assert city_variances(records) == found


def test_a_city_that_does_not_vary_is_floored_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_data_dir(tmp_path / "data", ["AAA", "FLT", "NON"], (40, 40), ".png")
    records = read_split(root, "train")
    for record, height in ((records[1], 3.0), (records[2], np.nan)):
        assert record.agl is not None
        assert record.vflow is not None
        write_agl_cm(record.agl, np.full((40, 40), height, np.float32), allow_nodata=True)
        write_vflow(record.vflow, 0.0, 0.0)
    found = city_variances(records)
    assert found["FLT"] == found["NON"] == (LEAST_M2, LEAST_PX2)
    assert found["AAA"].agl_m2 > LEAST_M2
    assert [message[:4] for message in caplog.messages] == ["FLT:", "NON:"]


@pytest.mark.parametrize("downsample", [1, 2])
def test_the_variance_of_flow_is_in_pixels_of_the_sample(
    records: list[ImageRecord], downsample: int
) -> None:
    known = {city: Variances(25.0, 9.0) for city in CITIES}
    augmentation = build_augmentation("hard", 24, downsample)
    samples = GeoposeDataset(records, "rgb", augmentation, seed=1, variances=known)
    zooms = []
    for sample, record in zip(samples, records, strict=True):
        assert sample[keys.TARGET_AGL_VARIANCE].tolist() == [25.0]
        assert record.vflow is not None
        scale = 1.5 + int(record.image_id) / 10
        zooms.append(float(sample[keys.TARGET_VFLOW_SCALE]) / scale)
        expected = 9.0 * zooms[-1] ** 2
        assert sample[keys.TARGET_FLOW_VARIANCE].tolist() == pytest.approx([expected], rel=1e-5)
    assert max(zooms) / min(zooms) > 1.1
    whole = GeoposeDataset(records, "rgb", variances=known)[0]
    assert whole[keys.TARGET_FLOW_VARIANCE].tolist() == [9.0]


def test_lean_is_scale_times_gsd_whatever_the_zoom(records: list[ImageRecord]) -> None:
    crop = build_augmentation("light", 32)
    samples = GeoposeDataset(records, "rgb", crop, seed=3)
    batch = next(iter(DataLoader(samples, batch_size=12)))
    expected = [0.5 * (1.5 + number / 10) for number in range(12)]
    lean = device_targets(batch)[keys.TARGET_LEAN]
    assert lean[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_variances_are_only_looked_for_if_the_loss_asks(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaders(loss: str) -> dict[str, DataLoader]:
        cfg = plain(composed(*tiny_overrides(data, Path("none"), f"loss={loss}")))
        wanted = build_loss(cfg["loss"]).batch_keys
        return build_loaders(cfg, Resources(0, 0, 1), torch.device("cpu"), wanted)

    for loader in loaders("r2").values():
        assert next(iter(loader))[keys.TARGET_AGL_VARIANCE].shape[1:] == (1,)
    monkeypatch.setattr("geopose.training.data.loaders.city_variances", None)
    assert keys.TARGET_AGL_VARIANCE not in next(iter(loaders("huber_cos")["train"]))


@pytest.mark.parametrize("loss", ["r2_trimmed", "huber_cos_epe", "huber_cos_lean"])
def test_every_kind_of_term_trains(sample_dir: Path, tmp_path: Path, loss: str) -> None:
    """With mixup, at half resolution; validation is on a city that is not trained on."""
    more = ("train.downsample=2", "train.crop_size=32", "dataset.fold_split=region")
    run = train(
        sample_dir, tmp_path / "run", f"loss={loss}", "train.epochs=1", "train.mixup=0.4",
        "dataset.fold=3", *more,
    )  # fmt: skip
    last = load_checkpoint(run / "checkpoints_mean_r2/last.pth")
    for part in ("train", "valid"):
        metrics = last["metrics"][part]
        terms = build_loss(composed(f"loss={loss}").loss).prefixes
        assert all(np.isfinite(metrics[name]) and metrics[name] > 0 for name in terms)
