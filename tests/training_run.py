"""Training runs small enough for tests: config, run, and what a checkpoint scores afterwards."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

from geopose import keys
from geopose.checkpoints.load import load_model
from geopose.data.dataset import GeoposeDataset
from geopose.data.folds import split_fold
from geopose.data.layouts.splits import read_split
from geopose.metrics import ScoreAccumulator
from geopose.training.fit import fit

# Folders, which differ from test to test, and are the same to Hydra: it composes the rest once.
OF_TEST = ("dataset.data_dir=", "experiment=")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TINY = (
    "model=sample_unet",
    "model.encoder.name=test_efficientnet",
    "train=sample",
    "train.crop_size=64",
    "train.downsample=1",
    "train.crops_per_image=1",
    "train.epochs=2",
    "loss=huber_cos",
    "scheduler=cos",
    "optimizer=sample",
    "optimizer.precision=fp32",
    "dataset.num_folds=3",
    "batch_size=2",
)


def composed(*overrides: str) -> DictConfig:
    """The config that train.py would compose from these arguments."""
    of_test = dict(word.split("=", 1) for word in overrides if word.startswith(OF_TEST))
    cfg = deepcopy(_composed(*(word for word in overrides if not word.startswith(OF_TEST))))
    for name, path in of_test.items():
        OmegaConf.update(cfg, name, None if path == "null" else path)
    return cfg


@cache
def _composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", list(overrides))


def tiny_overrides(data_dir: Path, run_dir: Path, *more: str) -> list[str]:
    """Arguments of a run of seconds."""
    return [*TINY, f"dataset.data_dir={data_dir}", f"experiment={run_dir}", *more]


def train(data_dir: Path, run_dir: Path, *more: str) -> Path:
    """Trains in this process; returns the run directory."""
    return fit(composed(*tiny_overrides(data_dir, run_dir, *more)))


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint."""
    return torch.load(path, weights_only=False)["model_state_dict"]


def score_of(model: nn.Module, data_dir: Path, fold: int = 0, num_folds: int = 3) -> dict[str, Any]:
    """The score of a model on a validation fold, computed apart from the training code."""
    _, records = split_fold(read_split(data_dir, "train"), fold, "stratified", num_folds)
    score = ScoreAccumulator()
    for sample in GeoposeDataset(records, "rgb"):
        with torch.inference_mode():
            out = model(
                sample[keys.INPUT_IMAGE_KEY][None], sample[keys.INPUT_GROUND_SAMPLE_DISTANCE][None]
            )
        score.update(
            sample[keys.INPUT_CITY_NAME],
            out[keys.OUTPUT_AGL_MASK][0, 0].numpy(),
            float(out[keys.OUTPUT_VFLOW_SCALE]),
            float(out[keys.OUTPUT_VFLOW_ANGLE]),
            sample[keys.TARGET_AGL_MASK][0].numpy(),
            float(sample[keys.TARGET_VFLOW_SCALE]),
            float(sample[keys.TARGET_VFLOW_ANGLE]),
        )
    return score.result()


def score_of_checkpoint(path: Path, data_dir: Path) -> float:
    """Mean R2 of a checkpoint on the validation fold."""
    return score_of(load_model(path).model, data_dir)["score"]
