"""Every shipped option of every group composes and builds."""

from pathlib import Path

import pytest
import torch

from geopose.augment.build import build_augmentation
from geopose.construct import plain
from geopose.losses import build_loss
from geopose.models.build import build_model
from geopose.training.check import check_config
from geopose.training.optim import build_optimizer, build_scheduler
from tests.training_run import CONFIGS, composed

GROUPS = ("model", "loss", "optimizer", "scheduler", "train", "dataset", "runner")
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((CONFIGS / group).glob("*.yaml"))
    if path.stem != "base"
]
PUBLISHED_COMMANDS = [
    "model=b6_rdtsc_unet optimizer=adamw_fp32 scheduler=plateau loss=huber_cos train=light_768 "
    "train.epochs=300 train.early_stopping=50 train.show=False train.loaders.train.num_workers=8 "
    "batch_size=3 dataset.fold=9 seed=777",
    "model=b7_unet optimizer=adamw scheduler=cos loss=huber_cos train=light_768 train.epochs=250 "
    "train.show=False train.loaders.train.num_workers=10 batch_size=4 dataset.fold=0 seed=555",
]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["/".join(o) for o in OPTIONS])
def test_option_composes_and_builds(group: str, option: str) -> None:
    cfg = plain(composed(f"{group}={option}"))
    check_config(cfg)
    with torch.device("meta"):  # shapes only: the largest networks build in no time
        model = build_model(cfg["model"], load_pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    assert build_loss(cfg["loss"]).prefixes
    train = cfg["train"]
    build_augmentation(train["augmentations"], train["crop_size"], train["downsample"])
    small = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(small, cfg["optimizer"], 1)
    lr = cfg["optimizer"]["lr"]
    build_scheduler(optimizer, cfg["scheduler"], lambda step: step / 10, lr, "max")


@pytest.mark.parametrize("command", PUBLISHED_COMMANDS, ids=["b6", "b7"])
def test_published_commands_compose(command: str) -> None:
    cfg = plain(composed(*command.split()))
    check_config(cfg)
    assert cfg["train"]["crop_size"] == 768


def test_groups_are_documented_in_the_root() -> None:
    root = (CONFIGS / "config.yaml").read_text()
    assert all(f"- {group}: " in root for group in GROUPS)
    assert Path(CONFIGS / "train" / "base.yaml").is_file()
