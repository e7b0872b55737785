"""What the keys of a training config take: the schema of configs/config.yaml and its groups.

The YAML files hold the values and say what they mean; what a value may be is said here. The groups
`model`, `loss` and `scheduler` are free: what builds them checks them.
"""

from dataclasses import dataclass
from typing import Any

from geopose.schema.check import key, section
from geopose.training.precision import PRECISIONS

_GROUP = "choose one of the options of this group"


@dataclass
class Loader:
    """Worker processes that make batches."""

    num_workers: int | str = key(least=0, choices=("auto",))
    prefetch: int = key(least=1)


@dataclass
class ValidLoader(Loader):
    """Those of validation, whose batches have a size of their own."""

    batch_size: int = key(least=1)


@dataclass
class Loaders:
    """Both."""

    train: Loader = section(Loader)
    valid: ValidLoader = section(ValidLoader)


@dataclass
class Train:
    """configs/train."""

    augmentations: str = key()
    crop_size: int | None = key(least=1)
    downsample: int = key(least=1)
    gsd_m: float | None = key(least=0, above=True, default=None)
    height_warp: dict[str, Any] | None = key(default=None)
    epochs: int = key(least=1)
    max_minutes: float | None = key(least=0, above=True)
    crops_per_image: int = key(least=1)
    cache: bool = key()
    save_every_minutes: float | None = key(least=0)
    max_skipped_share: float = key(least=0, most=1)
    ema: float | None = key(least=0, above=True, most=1)
    early_stopping: int = key(least=0)
    show: bool = key()
    fast: bool = key()
    mixup: float = key(least=0)
    balance_cities: bool = key(default=False)
    plain_epochs: int = key(least=0, default=0)
    loaders: Loaders = section(Loaders)
    threads: int | str = key(least=1, choices=("auto",))


@dataclass
class Optimizer:
    """configs/optimizer."""

    name: str = key()
    lr: float = key(least=0, above=True)
    weight_decay: float = key(least=0)
    kwargs: dict[str, Any] = key()
    precision: str = key(choices=PRECISIONS)
    fp16: bool | None = key()
    weight_decay_on_bias: bool = key()
    layerwise: dict[str, Any] = key()
    accumulation: int = key(least=1)
    clip_grad_norm: float | None = key(least=0, above=True)


@dataclass
class Dataset:
    """configs/dataset."""

    data_dir: str | None = key()
    layout: str = key()
    fold: int = key(least=0)
    fold_split: str = key()
    num_folds: int = key(least=2)
    places: str | None = key(default=None)


@dataclass
class KeptCheckpoint:
    """A metric by which checkpoints are kept."""

    name: str = key()
    metric: str = key()
    mode: str = key(choices=("max", "min"))


@dataclass
class Runner:
    """configs/runner."""

    main_metric: str = key()
    main_mode: str = key(choices=("max", "min"))
    checkpoints: list[KeptCheckpoint] = key(
        least=1, meaning="a list of at least one metric to keep checkpoints by"
    )
    top_k: int = key(least=1)


@dataclass
class TrainingConfig:
    """configs/config.yaml."""

    model: dict[str, Any] = key(meaning=_GROUP)
    loss: dict[str, Any] = key(meaning=_GROUP)
    optimizer: Optimizer = section(Optimizer, _GROUP)
    scheduler: dict[str, Any] = key(meaning=_GROUP)
    train: Train = section(Train, _GROUP)
    dataset: Dataset = section(Dataset, _GROUP)
    runner: Runner = section(Runner, _GROUP)
    batch_size: int = key(least=1)
    seed: int = key(least=0)
    channels_last: bool = key()
    deterministic: bool = key()
    detect_anomaly: bool = key()
    sync_bn: bool = key()
    find_unused: bool = key()
    transfer: str | None = key()
    transfer_encoder_decoder: str | None = key()
    checkpoint: str | None = key()
    freeze_encoder: bool = key()
    resume: bool | None = key()
    experiment: str | None = key()
