"""The Catalyst runner: all of Catalyst and accelerate that the toolkit uses is in this folder.

Catalyst gives the loop and its events. Precision, gradients of several processes, and the position
within an epoch are handled here, because a run must be able to go on from any step. Loaders are
sharded by us, so that validation counts each image once.
"""

import contextlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from catalyst.core.callback import Callback
from catalyst.core.engine import Engine
from catalyst.dl import SupervisedRunner
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from geopose.data.dataset import GeoposeDataset
from geopose.data.targets import device_targets
from geopose.distributed import gather_objects, is_distributed, rank
from geopose.errors import Stopped
from geopose.keys import INPUT_GROUND_SAMPLE_DISTANCE, INPUT_IMAGE_KEY
from geopose.losses.total import LossSum
from geopose.system.memory import release_freed_memory
from geopose.system.signals import StopSignal
from geopose.training.callbacks.report import TensorboardLogger
from geopose.training.data.mixup import mix_batch
from geopose.training.data.sampler import ResumableSampler
from geopose.training.precision import Precision
from geopose.training.resume.position import LAST, restore, snapshot, write_last
from geopose.training.resume.run_files import TENSORBOARD
from geopose.training.resume.seeding import seed_step


def build_engine(device: torch.device) -> Engine:
    """The process's engine, which tells Catalyst device, rank and number of processes."""
    # accelerate keeps one state a process and refuses a second run with other settings
    AcceleratorState._reset_state(reset_partial_state=True)
    return Engine(cpu=device.type == "cpu", mixed_precision="no")


@dataclass
class RunParts:
    """Everything that a run is assembled from; see geopose.training.fit."""

    model: nn.Module  # on its device
    ema: ModelEmaV3 | None
    criterion: LossSum
    optimizer: Optimizer
    scheduler: Any
    loaders: Mapping[str, DataLoader]
    callbacks: Mapping[str, Callback]
    engine: Engine
    precision: Precision
    channels_last: bool  # the network's memory layout
    header: Mapping[str, Any]  # of every checkpoint
    run_dir: Path
    last_folder: Path  # where last.pth goes
    cfg: Mapping[str, Any]
    payload: Mapping[str, Any] | None  # the checkpoint that the run goes on from


class GeoposeRunner(SupervisedRunner):
    """Supervised training of a network that takes image and gsd and returns a dict of outputs.

    Attributes:
        network: the bare network; `model` may be wrapped for several processes.
        epoch_batch: training batches done in this epoch, those before a resume included.
        updates: of the weights, in the whole run.
        group_position: number of the batch within those of one update; `is_group_end`: the last.
        loss_factors: of every loss term of the batch, see geopose.training.callbacks.step.
        finished_metrics: of the last epoch that was finished.
    """

    batch: Any  # Catalyst's declaration is narrower than what it puts there

    def __init__(self, parts: RunParts, signals: StopSignal) -> None:
        super().__init__(input_key=None, output_key=None)
        self._parts, self._signals = parts, signals
        self.network, self.ema, self.precision = parts.model, parts.ema, parts.precision
        self.run_dir = parts.run_dir
        self.epoch_batch = self.updates = self.group_position = 0
        self.is_group_end = True
        self.loss_factors = torch.empty(0)
        self.finished_metrics: dict[str, Any] = {}
        self._stop = 0  # signal that all ranks know of
        self._is_save_due = False
        self._last_save = time.monotonic()
        self._trained: dict[str, Any] = {}  # position after the epoch's last training batch

    @property
    def networks(self) -> list[nn.Module]:
        """The network and, if there is one, its average."""
        return [self.network] if self.ema is None else [self.network, self.ema.module]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self._parts.cfg["seed"]

    @property
    def num_epochs(self) -> int:
        """Epochs of the run."""
        return self._parts.cfg["train"]["epochs"]

    def get_engine(self) -> Engine:
        """The process's engine."""
        return self._parts.engine

    def get_loggers(self) -> dict[str, TensorboardLogger]:
        """TensorBoard, on rank 0 only (Catalyst asks no other)."""
        return {"tensorboard": TensorboardLogger(self.run_dir / TENSORBOARD, self._parts.cfg)}

    def get_loaders(self) -> "OrderedDict[str, DataLoader]":
        """Loaders by name, `train` first; `valid_ema` validates the averaged weights."""
        loaders = OrderedDict(self._parts.loaders)
        if self.ema is not None:
            loaders["valid_ema"] = loaders["valid"]
        return loaders

    def _setup_loaders(self) -> None:
        # Not prepared by accelerate: its even batches count some validation images twice.
        self.loaders = self.get_loaders()

    def get_model(self) -> nn.Module:
        """The bare network."""
        return self.network

    def _setup_components(self) -> None:
        # Not prepared by accelerate: its wrappers hide the state that a resumed run needs.
        self.criterion = self._parts.criterion
        self.optimizer, self.scheduler = self._parts.optimizer, self._parts.scheduler
        self.model = _wrap(self.network, self.engine.device, self._parts.cfg["find_unused"])

    def get_callbacks(self) -> "OrderedDict[str, Callback]":
        """The run's callbacks; Catalyst sorts them by order."""
        return OrderedDict(self._parts.callbacks)

    def on_experiment_start(self, runner: Any) -> None:
        """Sets up, and goes to where the checkpoint stands."""
        super().on_experiment_start(runner)
        if self._parts.payload is not None:
            restore(self, self._parts.payload)

    def on_epoch_start(self, runner: Any) -> None:
        """Each epoch draws other samples."""
        super().on_epoch_start(runner)
        cast(GeoposeDataset, self.loaders["train"].dataset).set_epoch(self.epoch_step)
        sampler = cast(ResumableSampler, self.loaders["train"].sampler)
        sampler.skipped = self.epoch_batch * (self.loaders["train"].batch_size or 1)

    def on_loader_start(self, runner: Any) -> None:
        """Validation sees the same BatchNorm statistics on every rank."""
        super().on_loader_start(runner)
        if self.is_train_loader:
            self.loader_batch_step = self.epoch_batch * self.engine.num_processes
            if self._parts.cfg["freeze_encoder"]:
                cast(nn.Module, self.network.encoder).eval()
        elif is_distributed():
            for network in self.networks:
                _broadcast_buffers(network)

    def _run_epoch(self) -> None:
        for key, loader in self.loaders.items():
            self.loader_key, self.loader = key, loader
            self._run_event("on_loader_start")
            if loader.num_workers:  # it may start them now
                release_freed_memory()
            self._run_loader()
            if self.is_train_loader:
                self._trained = snapshot(self, is_epoch_end=False)
            else:
                self._stop = max(gather_objects(self._signals.number))
                self._save_and_stop(self._trained)
            self._run_event("on_loader_end")

    def _run_loader(self) -> None:
        with torch.set_grad_enabled(self.is_train_loader):
            for group in self._groups():
                for self.group_position, self.batch in enumerate(group):
                    self.is_group_end = self.group_position == len(group) - 1
                    self._run_event("on_batch_start")
                    self.handle_batch(batch=self.batch)
                    self._run_event("on_batch_end")
                if self.need_early_stop or (self._signals.number and not self.is_train_loader):
                    break  # validation is repeated as a whole, so each process may leave at once

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """The batches of one update after the other, on the device; single ones in validation."""
        batches = iter(self.loader)
        size = self._parts.cfg["optimizer"]["accumulation"] if self.is_train_loader else 1
        while group := [self._prepare(batch) for batch in islice(batches, size)]:
            if self.is_train_loader:
                self._group_factors = self._loss_factors_of(group)
            yield group

    def _prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Moves a batch to the device and adds what follows from it."""
        moved = send_to_device(dict(batch), self.engine.device, non_blocking=True)
        if self._parts.channels_last:
            images = moved[INPUT_IMAGE_KEY]
            moved[INPUT_IMAGE_KEY] = images.contiguous(memory_format=torch.channels_last)
        return {**moved, **device_targets(moved)}

    def _loss_factors_of(self, group: list[dict[str, Any]]) -> Tensor:
        """For every batch and loss term: its share of the elements of the whole update.

        Times the number of processes, because DistributedDataParallel averages over them.
        """
        counts = torch.stack([self.criterion.counts(batch) for batch in group])
        total = counts.sum(dim=0)
        if is_distributed():
            dist.all_reduce(total)
        return counts / total.clamp(min=1.0) * self.engine.num_processes

    def on_batch_start(self, runner: Any) -> None:
        """Seeds the step and mixes the batch if asked to."""
        super().on_batch_start(runner)
        if self.is_train_loader:
            self.loss_factors = self._group_factors[self.group_position]
            seed_step(self.seed, self.epoch_step, self.epoch_batch, rank())
            if self._parts.cfg["train"]["mixup"] > 0:
                self.batch = mix_batch(self.batch, float(self._parts.cfg["train"]["mixup"]))

    def forward(self, batch: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        """Outputs of a batch, float32.

        Validation bypasses the wrapper for several processes, whose collectives would hang on
        shards of different length.
        """
        model: nn.Module = self.model
        if not self.is_train_loader:
            is_ema = self.ema is not None and self.loader_key == "valid_ema"
            model = self.networks[-1 if is_ema else 0]
        elif isinstance(model, DistributedDataParallel):
            # Gradients are exchanged once an update; this is what its no_sync() sets.
            model.require_backward_grad_sync = self.is_group_end
        with self.precision.autocast():
            outputs = model(batch[INPUT_IMAGE_KEY], batch[INPUT_GROUND_SAMPLE_DISTANCE], **kwargs)
        return {name: value.float() for name, value in outputs.items()}

    def agree_on_step(self, is_good: Tensor) -> bool:
        """Whether the update is good on every rank; passes signals and the clock on as well."""
        minutes = self._parts.cfg["train"]["save_every_minutes"]
        elapsed = (time.monotonic() - self._last_save) / 60
        is_due = minutes is not None and rank() == 0 and elapsed >= minutes
        own = [
            torch.full_like(is_good, x, dtype=torch.float32) for x in (self._signals.number, is_due)
        ]
        flags = torch.stack([(~is_good).float(), *own])
        if is_distributed():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        bad, signal_number, is_due = flags.tolist()  # the one wait for the device in an update
        self._stop, self._is_save_due = int(signal_number), bool(is_due)
        return not bad

    def after_update(self) -> None:
        """Counts the update and takes it into the average."""
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.network, step=self.updates)

    def on_batch_end(self, runner: Any) -> None:
        """Saves between updates, when it is time or a signal has come."""
        super().on_batch_end(runner)
        if not self.is_train_loader:
            return
        self.epoch_batch += 1
        if self.is_group_end and (self._stop or self._is_save_due):
            self._save_and_stop(snapshot(self, is_epoch_end=False))

    def _save_and_stop(self, state: Mapping[str, Any]) -> None:
        """Writes last.pth if it is due, and ends the run if a signal has come."""
        if self._stop or self._is_save_due:
            self._save(state)
        if self._stop:
            self._end_by_signal()

    def _save(self, state: Mapping[str, Any]) -> None:
        write_last(self, self._parts.last_folder, self._parts.header, state)
        self._last_save, self._is_save_due = time.monotonic(), False

    def _end_by_signal(self) -> None:
        stop = Stopped(
            f"stopped by signal {self._stop} with everything saved in "
            f"{self._parts.last_folder / LAST}; the same command with experiment={self.run_dir} "
            "goes on",
            self._stop,
        )
        stop.on_every_rank = True
        raise stop

    def on_epoch_end(self, runner: Any) -> None:
        """Saves after everything else has seen the epoch."""
        super().on_epoch_end(runner)
        self.epoch_batch = 0
        self.finished_metrics = {key: dict(values) for key, values in self.epoch_metrics.items()}
        self._save(snapshot(self, is_epoch_end=True))
        self._stop = max(gather_objects(self._signals.number))
        if self._stop and self.epoch_step < self.num_epochs and not self.need_early_stop:
            self._end_by_signal()

    def on_exception(self, runner: Any) -> None:
        """Closes the logs, whatever state they are in; the error is what matters."""
        with contextlib.suppress(OSError, ValueError):
            self.close_log()
        super().on_exception(runner)


def _wrap(network: nn.Module, device: torch.device, find_unused: bool) -> nn.Module:
    """The network whose backward pass averages gradients over the processes, if there are more."""
    if not is_distributed():
        return network
    # torch renames the argument for buffers, keeping its meaning: nothing a user could act on
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    model = DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,  # no second copy of the gradients
        broadcast_buffers=False,  # done once before validation, not at every step
    )
    if dist.get_backend() == "gloo":
        model.register_comm_hook(None, _mean_in_rank_order)
    return model


def _mean_in_rank_order(
    state: object, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Mean of a gradient bucket that does not depend on where in a bucket a parameter lies.

    Buckets are laid out anew after the first step of a session, and a ring's order of additions
    follows the layout: with more than two processes, a resumed run would differ in the last bit.
    """
    del state
    own = bucket.buffer()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    total = parts[0]
    for part in parts[1:]:
        total += part
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(total.div_(len(parts)))
    return future


def _broadcast_buffers(network: nn.Module) -> None:
    """Every rank validates with rank 0's BatchNorm statistics, which are those that are saved."""
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)
