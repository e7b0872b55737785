"""The Catalyst runner: all of Catalyst and accelerate that the toolkit uses is in this folder.

Under torchrun the process group is already up when the engine starts; loaders are sharded by us,
so that validation counts each image once.
"""

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from catalyst.core.callback import Callback
from catalyst.core.engine import Engine
from catalyst.dl import SupervisedRunner
from catalyst.loggers.tensorboard import TensorboardLogger
from catalyst.utils.misc import set_global_seed
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from geopose.data.dataset import GeoposeDataset
from geopose.distributed import gather_objects, is_distributed
from geopose.geometry import flow_map
from geopose.keys import (
    INPUT_IMAGE_KEY,
    TARGET_FLOW_MASK,
    TARGET_MAGNITUDE_MASK,
    TARGET_VFLOW_DIRECTION,
)
from geopose.training.callbacks import broadcast_buffers
from geopose.training.mixup import mix_batch


class GeoposeEngine(Engine):
    """Catalyst's engine with the metric reduction that works with today's accelerate."""

    def mean_reduce_ddp_metrics(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Means of scalar metrics over the processes."""
        parts = gather_objects({key: float(value) for key, value in metrics.items()})
        return {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}


def resolve_precision(precision: str, device: torch.device) -> str:
    """What `amp` means on a device; other names stay as they are.

    On a GPU bf16 where it has it, else fp16; on a CPU bf16 where the processor computes in it
    (elsewhere it is emulated and slow), else fp32.
    """
    if precision != "amp":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"


def build_engine(device: torch.device, precision: str, find_unused: bool) -> GeoposeEngine:
    """The engine of this process.

    Args:
        device: where the network runs.
        precision: fp32, bf16, fp16 or amp.
        find_unused: allow parameters without gradient under several processes.
    """
    # accelerate keeps one state a process and refuses a second run with other settings
    AcceleratorState._reset_state(reset_partial_state=True)
    # torch renames the argument that accelerate still passes: nothing a user could act on
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    precision = resolve_precision(precision, device)
    return GeoposeEngine(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=find_unused,
                gradient_as_bucket_view=True,  # no second copy of the gradients
                broadcast_buffers=False,  # done once before validation, not at every step
            )
        ],
    )


@dataclass
class RunParts:
    """Everything that a run is assembled from; see geopose.training.fit."""

    model: nn.Module
    criterion: nn.Module
    optimizer: Optimizer
    scheduler: Any
    loaders: Mapping[str, DataLoader]
    callbacks: Mapping[str, Callback]
    engine: GeoposeEngine
    input_keys: Mapping[str, str]
    log_dir: Path
    epochs: int
    seed: int
    mixup: float
    channels_last: bool


class GeoposeRunner(SupervisedRunner):
    """Supervised training of a network that takes image and gsd and returns a dict of outputs."""

    batch: Any  # Catalyst's declaration is narrower than what it puts there

    def __init__(self, parts: RunParts) -> None:
        super().__init__(input_key=None, output_key=None)
        self._parts = parts

    @property
    def seed(self) -> int:
        """Seed of the run; Catalyst adds rank and epoch."""
        return self._parts.seed

    @property
    def num_epochs(self) -> int:
        """Epochs of the run."""
        return self._parts.epochs

    def get_engine(self) -> GeoposeEngine:
        """The process's engine."""
        return self._parts.engine

    def get_loggers(self) -> dict[str, TensorboardLogger]:
        """TensorBoard, on rank 0 only (Catalyst asks no other)."""
        return {"tensorboard": TensorboardLogger(str(self._parts.log_dir), log_batch_metrics=True)}

    def get_loaders(self) -> "OrderedDict[str, DataLoader]":
        """Loaders by name, `train` first."""
        return OrderedDict(self._parts.loaders)

    def _setup_loaders(self) -> None:
        # Not prepared by accelerate: its even batches count some validation images twice.
        set_global_seed(self.seed + max(0, self.engine.process_index) + self.epoch_step)
        self.loaders = self.get_loaders()

    def get_model(self) -> nn.Module:
        """The bare network; the engine wraps it."""
        return self._parts.model

    def get_criterion(self) -> nn.Module:
        """The sum of losses."""
        return self._parts.criterion

    def get_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer, made for the bare network's parameters."""
        return self._parts.optimizer

    def get_scheduler(self, optimizer: Optimizer) -> Any:
        """The schedule of that optimizer."""
        return self._parts.scheduler

    def get_callbacks(self) -> "OrderedDict[str, Callback]":
        """The run's callbacks; Catalyst sorts them by order."""
        return OrderedDict(self._parts.callbacks)

    def on_epoch_start(self, runner: Any) -> None:
        """Each epoch draws other samples."""
        super().on_epoch_start(runner)
        cast(GeoposeDataset, self.loaders["train"].dataset).set_epoch(self.epoch_step)

    def on_loader_start(self, runner: Any) -> None:
        """Validation sees the same BatchNorm statistics on every rank."""
        super().on_loader_start(runner)
        if not self.is_train_loader and is_distributed():
            broadcast_buffers(self.engine.unwrap_model(self.model))

    def on_batch_start(self, runner: Any) -> None:
        """Moves the batch to the device, adds the flow map, and mixes the batch if asked to."""
        self.batch = send_to_device(self.batch, self.engine.device, non_blocking=True)
        if self._parts.channels_last:
            images = self.batch[INPUT_IMAGE_KEY]
            self.batch[INPUT_IMAGE_KEY] = images.contiguous(memory_format=torch.channels_last)
        # Made here and not by the loader: it follows from what the batch holds already.
        self.batch[TARGET_FLOW_MASK] = flow_map(
            self.batch[TARGET_MAGNITUDE_MASK], self.batch[TARGET_VFLOW_DIRECTION]
        )
        super().on_batch_start(runner)
        if self.is_train_loader and self._parts.mixup > 0:
            self.batch = mix_batch(self.batch, self._parts.mixup)

    def forward(self, batch: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        """Outputs of a batch. Validation bypasses the wrapper for several processes, whose
        collectives would hang on shards of different length."""
        model = self.model
        if not self.is_train_loader:
            model = self.engine.unwrap_model(model, keep_fp32_wrapper=True)
        inputs = {name: batch[key] for name, key in self._parts.input_keys.items()}
        return model(**inputs, **kwargs)
