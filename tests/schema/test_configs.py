"""Every shipped option of every group composes and builds."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from geopose import keys
from geopose.augment.build import build_augmentation
from geopose.construct import plain
from geopose.losses.total import build_loss
from geopose.models.build import build_model, channel_order, model_slug
from geopose.training.check import check_config
from geopose.training.help import BASE, purpose
from geopose.training.optim import build_optimizer, build_scheduler
from tests.tiny_run import ENVIRONMENT, ROOT, run_script
from tests.training_run import CONFIGS, composed

GROUPS = ("model", "loss", "optimizer", "scheduler", "train", "dataset", "runner")
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((CONFIGS / group).glob("*.yaml"))
    if path.stem != BASE
]
PUBLISHED_COMMANDS = [
    "model=b6_rdtsc_unet optimizer=adamw_fp32 scheduler=plateau loss=huber_cos train=light_768 "
    "train.epochs=300 train.early_stopping=50 train.show=False train.loaders.train.num_workers=8 "
    "batch_size=3 dataset.fold=9 seed=777",
    "model=b7_unet optimizer=adamw scheduler=cos loss=huber_cos train=light_768 train.epochs=250 "
    "train.show=False train.loaders.train.num_workers=10 batch_size=4 dataset.fold=0 seed=555",
]


@cache
def _parameters(model: str) -> int:
    """How many the network of a `model` node has; most options leave it as it is."""
    with torch.device("meta"):  # shapes only: the largest networks build in no time
        network = build_model(json.loads(model), load_pretrained=False)
    return sum(parameter.numel() for parameter in network.parameters())


def _build(cfg: dict[str, Any]) -> None:
    """Builds every part that a config describes."""
    check_config(cfg)
    assert _parameters(json.dumps(cfg["model"])) > 0
    assert build_loss(cfg["loss"]).prefixes
    train = cfg["train"]
    build_augmentation(
        train["augmentations"], train["crop_size"], train["downsample"], train["height_warp"]
    )
    small = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optimizer = build_optimizer(small, cfg["optimizer"], 1)
    lr = cfg["optimizer"]["lr"]
    build_scheduler(optimizer, cfg["scheduler"], lambda step: step / 10, lr, "max")


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["/".join(o) for o in OPTIONS])
def test_option_composes_and_builds(group: str, option: str) -> None:
    _build(plain(composed(f"{group}={option}")))


@pytest.mark.parametrize(
    "command",
    [
        "model=b7_rdtsc_unet train=light_768_down2 optimizer=sgd scheduler=1cycle loss=mse",
        "model=v2s_unet model.decoder.block_type=dense_unet model.decoder.upsample=rdtsc",
        "model=b6_rdtsc_unet model.encoder.pretrained=false model.agl_head.num_upsample_blocks=1",
        "model.encoder.name=resnet34 model.encoder.drop_path_rate=0 train=hard_512 seed=1",
        "model.agl_head._target_=geopose.models.heads.OnlyAGLHead "
        "model.orientation_head._target_=geopose.models.heads.BasicOrientationScaleHead",
        "model=mobilenet_unet model.decoder.block_type=ir_unet model.decoder.activation=relu "
        "train=safe_1024 train.downsample=4 train.crop_size=null optimizer=adamw_finetune",
        "loss=huber_cos loss.losses.magnitude.weight=0.1 +loss.losses.agl.loss.fraction=0.9",
        "train=medium_768 train.augmentations=d4_only train.mixup=0.2 train.max_minutes=30 "
        "train.height_warp={probability:0.5,factor:[0.6,1.6]} "
        "optimizer=ranger21 optimizer.clip_grad_norm=1 scheduler=flat_cos scheduler.flat=0.5",
        "dataset.fold_split=region dataset.fold=2 batch_size=1 optimizer.accumulation=8",
    ],
)
def test_what_users_combine_builds(command: str) -> None:
    _build(plain(composed(*command.split())))


@pytest.mark.parametrize("command", PUBLISHED_COMMANDS, ids=["b6", "b7"])
def test_published_commands_compose(command: str) -> None:
    cfg = plain(composed(*command.split()))
    check_config(cfg)
    assert cfg["train"]["crop_size"] == 768


@pytest.mark.parametrize("model", [option for group, option in OPTIONS if group == "model"])
def test_every_model_trains_with_every_loss(model: str) -> None:
    node = plain(composed(f"model={model}"))["model"]
    assert (model_slug(node), channel_order(node)) == (model, "rgb")
    with torch.device("meta"):
        network = build_model(node, load_pretrained=False).train()
        found = network(torch.zeros(2, 3, 64, 96), torch.zeros(2, 1))
        torch.stack([value.mean() for value in found.values()]).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    shapes = {key: value.shape for key, value in found.items()}
    assert shapes[keys.OUTPUT_AGL_MASK] == (2, 1, 64, 96)
    assert shapes[keys.OUTPUT_VFLOW_DIRECTION] == (2, 2)
    output = {key: torch.rand(shape) for key, shape in shapes.items()}
    batch = {key.replace("OUTPUT", "TARGET"): torch.rand(shape) for key, shape in shapes.items()}
    batch[keys.TARGET_FLOW_MASK] = torch.rand(2, 2, 64, 96)
    for key in (keys.TARGET_AGL_VARIANCE, keys.TARGET_FLOW_VARIANCE, keys.TARGET_LEAN):
        batch[key] = torch.ones(2, 1)
    for loss in (option for group, option in OPTIONS if group == "loss"):
        criterion = build_loss(plain(composed(f"loss={loss}"))["loss"])
        criterion = criterion.fitting(output, batch)
        assert ("flow" in criterion.prefixes) == (
            loss in ("huber_cos_flow", "flow_first", "r2_flow") and keys.OUTPUT_FLOW_MASK in shapes
        )
        assert criterion(output, batch)["loss"].shape == ()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_starts_with_what_it_is_for(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert len(first) <= 100


def test_help_shows_every_option_and_what_keys_mean() -> None:
    done = run_script(ROOT / "train.py", "--help", "optimizer=sgd")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert [line.rstrip("=") for line in lines if line.endswith("=")] == sorted(GROUPS)
    for group, option in OPTIONS:
        mark = "* " if f"{group}={option}" == "optimizer=sgd" else ""
        assert f"{mark}{option} {purpose(CONFIGS / group / f'{option}.yaml')}" in [
            line if mark else line.removeprefix("* ") for line in lines
        ]
    assert "batch_size: 4 # images a process and step" in lines  # of the root
    assert "accumulation: 1 # batches a step" in lines  # of a base
    assert any(line.startswith("precision: amp # fp32") for line in lines)  # over two lines
    assert not any(line.startswith("hydra") for line in lines)


def test_help_can_be_cut_short() -> None:
    """Whatever reads it may stop reading, as `head` does."""
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_groups_are_documented_in_the_root() -> None:
    root = (CONFIGS / "config.yaml").read_text()
    assert all(f"- {group}: " in root for group in GROUPS)
