"""What is drawn in an epoch: every city as often, and in the last ones mere crops."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from geopose import keys
from geopose.augment.build import build_augmentation
from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.data.dataset import GeoposeDataset
from geopose.data.layout import ImageRecord
from geopose.training.callbacks.plain import PlainEpochsCallback
from geopose.training.callbacks.stop import TimeBudget
from geopose.training.data.sampler import BalancedSampler
from geopose.training.fit import fit
from tests.training.conftest import CITIES
from tests.training_run import composed, tiny_overrides, train

LAST = "checkpoints_mean_r2/last.pth"


def _samples(records: list[ImageRecord], repeats: int = 1, **more: Any) -> GeoposeDataset:
    crop = build_augmentation("light", 32)
    return GeoposeDataset(records, "rgb", crop, seed=3, repeats=repeats, **more)


def _drawn(samples: GeoposeDataset, epoch: int, processes: int = 1, skipped: int = 0) -> list[Any]:
    """The indices that every process draws."""
    drawn = []
    for rank in range(processes):
        sampler = BalancedSampler(samples, processes, rank, seed=5)
        sampler.set_epoch(epoch)
        sampler.skipped = skipped
        drawn.append(list(sampler))
    return drawn


@pytest.mark.parametrize("repeats", [1, 4])
def test_every_city_is_drawn_equally_often(records: list[ImageRecord], repeats: int) -> None:
    samples = _samples(records, repeats)
    (drawn,) = _drawn(samples, epoch=1)
    assert len(drawn) == len(samples) == 12 * repeats
    assert len(set(drawn)) == len(drawn)  # so that each is augmented on its own
    images = Counter(index % 12 for index in drawn)
    cities = Counter(CITIES[index % 12] for index in drawn)
    assert set(cities.values()) == {4 * repeats}
    for city in cities:
        turns = [images[number] for number in range(12) if CITIES[number] == city]
        assert max(turns) - min(turns) <= 1


def test_what_cannot_be_shared_evenly_goes_round(records: list[ImageRecord]) -> None:
    samples = _samples(records[:11])
    counts = [Counter(CITIES[i % 11] for i in _drawn(samples, epoch)[0]) for epoch in range(3)]
    assert all(sorted(count.values()) == [3, 4, 4] for count in counts)
    assert set(sum(counts, Counter()).values()) == {11}


def test_the_order_follows_from_seed_and_epoch_and_is_shared_out(
    records: list[ImageRecord],
) -> None:
    samples = _samples(records[:11])
    (alone,), (again,), (other,) = (_drawn(samples, epoch) for epoch in (1, 1, 2))
    assert alone == again != other
    first, second = _drawn(samples, 1, processes=2)
    assert [first[0], second[0], first[1]] == alone[:3]
    assert (len(first), len(second)) == (6, 6)  # one is drawn twice, as without balance
    assert set(first + second) == set(alone)
    later = _drawn(samples, 1, processes=2, skipped=4)
    assert later == [first[4:], second[4:]]


def test_further_draws_of_an_image_are_augmented_anew(records: list[ImageRecord]) -> None:
    samples = _samples(records)
    loader = DataLoader(samples, batch_size=2, sampler=[3, 15], num_workers=1)  # type: ignore[arg-type]
    (batch,) = loader
    assert batch[keys.INPUT_INDEX_KEY].tolist() == [3, 3]
    first, second = batch[keys.INPUT_IMAGE_KEY]
    assert not torch.equal(first, second)
    assert len(list(samples)) == 12  # as a sequence it ends


def test_plain_samples_are_crops_also_in_workers_that_live_on(
    records: list[ImageRecord],
) -> None:
    samples = _samples(records, plain=build_augmentation("none", 32))
    loader = DataLoader(samples, batch_size=12, num_workers=2, persistent_workers=True)
    before = next(iter(loader))
    samples.set_plain(True)
    crops = next(iter(loader))
    samples.set_plain(False)
    after = next(iter(loader))
    assert torch.equal(before[keys.INPUT_IMAGE_KEY], after[keys.INPUT_IMAGE_KEY])
    scales = [1.5 + number / 10 for number in range(12)]
    assert crops[keys.TARGET_VFLOW_SCALE][:, 0].tolist() == pytest.approx(scales)
    whole = GeoposeDataset(records, "rgb")
    for number, crop in enumerate(crops[keys.INPUT_IMAGE_KEY]):
        windows = whole[number][keys.INPUT_IMAGE_KEY].unfold(1, 32, 1).unfold(2, 32, 1)
        assert (windows == crop[:, None, None]).all(dim=(0, 3, 4)).any()  # type: ignore[call-overload]


def test_plain_epochs_are_the_last() -> None:
    budget = TimeBudget(None)
    callback = PlainEpochsCallback(2, 10, budget)
    assert [epoch for epoch in range(1, 11) if callback.is_plain(epoch)] == [9, 10]
    assert all(PlainEpochsCallback(11, 10, budget).is_plain(epoch) for epoch in range(1, 11))


def test_the_time_that_is_used_brings_the_plain_epochs_forward() -> None:
    budget = TimeBudget(None)
    callback = PlainEpochsCallback(10, 100, budget)  # the last tenth of the time
    found = []
    for epoch in range(1, 21):  # of a twentieth of the time each
        budget.share_used = (epoch - 1) / 20
        found.append(callback.is_plain(epoch))
    assert found == [False] * 18 + [True] * 2
    callback = PlainEpochsCallback(1, 1000, budget)
    budget.share_used = 0.8  # four epochs have been, the fifth will be the last
    assert callback.is_plain(5)


def test_a_run_of_before_these_keys_goes_on(sample_dir: Path, tmp_path: Path) -> None:
    run = train(sample_dir, tmp_path / "run", "train.epochs=1")
    payload = load_checkpoint(run / LAST)
    config = payload["checkpoint_data"]["config"]
    del config["train"]["balance_cities"], config["train"]["plain_epochs"]
    save_checkpoint(run / LAST, payload)
    train(sample_dir, run, "train.epochs=2")
    last = load_checkpoint(run / LAST)
    assert last["epoch"] == 2
    train_cfg = last["checkpoint_data"]["config"]["train"]
    assert (train_cfg["balance_cities"], train_cfg["plain_epochs"]) == (False, 0)


def test_a_run_of_before_new_keys_of_options_goes_on(sample_dir: Path, tmp_path: Path) -> None:
    """Its own command names options whose files have gained a key since."""
    run = train(sample_dir, tmp_path / "run", "train.epochs=1", "loss=huber_cos_flow")
    payload = load_checkpoint(run / LAST)
    config = payload["checkpoint_data"]["config"]
    assert "normalization" not in config["model"]
    del config["loss"]["losses"]["flow"]["if_predicted"]
    save_checkpoint(run / LAST, payload)
    told = ["model=sample_unet", "loss=huber_cos_flow", "train.epochs=2"]
    cfg = composed(*tiny_overrides(sample_dir, run, "train.epochs=2", "loss=huber_cos_flow"))
    OmegaConf.set_struct(cfg, False)
    cfg.model.normalization = "encoder"  # as if the option said it now
    fit(cfg, told)
    last = load_checkpoint(run / LAST)
    assert last["epoch"] == 2
    assert "normalization" not in last["checkpoint_data"]["config"]["model"]


@pytest.mark.parametrize(
    ("limit", "last"),
    [
        (("train.epochs=3", "train.plain_epochs=1"), [False, False, True]),
        (("train.epochs=2", "train.plain_epochs=0"), []),
        (("train.epochs=10000", "train.plain_epochs=5000", "train.max_minutes=0.05"), [True]),
    ],
    ids=["by number", "none", "by time"],
)
def test_a_training_ends_with_plain_epochs(
    sample_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: Any, last: list[bool]
) -> None:
    told: list[bool] = []
    set_plain = GeoposeDataset.set_plain

    def spy(self: GeoposeDataset, is_plain: bool) -> None:
        told.append(is_plain)
        set_plain(self, is_plain)

    monkeypatch.setattr(GeoposeDataset, "set_plain", spy)
    train(sample_dir, tmp_path / "run", *limit)
    assert told[len(told) - len(last) :] == last
    assert sorted(told) == told
    if "train.max_minutes=0.05" not in limit:
        assert len(told) == len(last)
