"""One training step: loss, backward, and an update that happens on all processes or on none.

A batch's terms are means over its valid pixels. An update averages over all batches of all
processes that it is made of, so each of those means is weighed by its pixels: how the images are
spread over processes and batches does not change the gradient.
"""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from catalyst.core.callback import (
    IBackwardCallback,
    ICriterionCallback,
    IOptimizerCallback,
    ISchedulerCallback,
)
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from geopose.distributed import gather_objects, is_main
from geopose.errors import RunError
from geopose.keys import INPUT_IMAGE_ID_KEY
from geopose.losses.total import TOTAL_KEY
from geopose.training.data.mixup import mixed_loss
from geopose.training.resume.run_files import SKIPPED_FILE

logger = logging.getLogger(__name__)

MIN_STEPS = 20  # an epoch with fewer steps is judged as if it had these


class LossCallback(ICriterionCallback):
    """Computes the loss of a batch and its mean over the loader, over all processes.

    Training batches whose loss is no number are left out of the mean: they are not learned from
    either, and are counted elsewhere.
    """

    is_per_rank = True

    def __init__(self) -> None:
        super().__init__()
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The sums of this process so far."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"sums": sums, "count": float(self._count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with these sums in the next loader."""
        self._restored = dict(state)

    def on_loader_start(self, runner: Any) -> None:
        """Forgets the previous loader."""
        start = self._restored or {"sums": {}, "count": 0.0}
        self._restored = None
        device = runner.engine.device

        def number(value: float) -> Tensor:
            return torch.full((), value, dtype=torch.float64, device=device)

        self._sums = {name: number(value) for name, value in start["sums"].items()}
        self._count = number(start["count"])

    def on_batch_end(self, runner: Any) -> None:
        """Puts `loss` and one entry per term into the batch metrics."""
        losses = mixed_loss(runner.criterion, runner.batch)
        runner.batch_metrics.update(losses)
        counts = torch.full_like(self._count, runner.batch_size)
        if runner.is_train_loader:
            counts = counts * torch.isfinite(losses[TOTAL_KEY].detach())
        for name, value in losses.items():
            part = torch.where(counts > 0, value.detach().double() * counts, 0.0)
            self._sums[name] = self._sums.get(name, torch.zeros_like(part)) + part
        self._count = self._count + counts

    def on_loader_end(self, runner: Any) -> None:
        """Means over every sample of the loader, each counted once."""
        parts = gather_objects(self.state_dict())
        total = sum(part["count"] for part in parts)
        for name in sorted({name for part in parts for name in part["sums"]}):
            value = sum(part["sums"].get(name, 0.0) for part in parts)
            runner.loader_metrics[name] = value / total if total else math.nan


class BackwardCallback(IBackwardCallback):
    """Backward pass of a batch's share of the update's loss."""

    def on_batch_end(self, runner: Any) -> None:
        """Training batches only; what remains in the metrics is for the logs."""
        if runner.is_train_loader:
            share = runner.criterion.weighted_sum(runner.batch_metrics, runner.loss_factors)
            runner.precision.scaler.scale(share).backward()
        runner.batch_metrics.update(
            {key: value.detach() for key, value in runner.batch_metrics.items()}
        )


class OptimizerCallback(IOptimizerCallback):
    """Updates after the last batch of a group, unless something in it is no number.

    Args:
        clip_grad_norm: largest norm of the gradient; None = any.
        max_skipped_share: of an epoch's updates; more end the run.
        run_dir: where the images of skipped updates are listed.
    """

    def __init__(
        self, clip_grad_norm: float | None, max_skipped_share: float, run_dir: Path
    ) -> None:
        super().__init__()
        self._clip, self._max_share = clip_grad_norm, max_skipped_share
        self._file = run_dir / SKIPPED_FILE
        self._counts = {"steps": 0, "skipped": 0, "faults": 0}
        self._restored = False

    def state_dict(self) -> dict[str, Any]:
        """What has happened in this epoch."""
        return dict(self._counts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting from there."""
        self._counts, self._restored = dict(state), True

    def on_loader_start(self, runner: Any) -> None:
        """Counts anew."""
        if not runner.is_train_loader:
            return
        if not self._restored:
            self._counts = dict.fromkeys(self._counts, 0)
        self._restored = False
        self._guard = _BufferGuard(runner.network)

    def on_batch_start(self, runner: Any) -> None:
        """Remembers the BatchNorm statistics that a bad batch would spoil."""
        if runner.is_train_loader and runner.group_position == 0:
            self._guard.remember()
            self._images: list[str] = []
            self._loss = torch.zeros((), device=runner.engine.device)

    def on_batch_end(self, runner: Any) -> None:
        """Updates the weights if this was the last batch of its group."""
        if not runner.is_train_loader:
            return
        self._images += map(str, runner.batch[INPUT_IMAGE_ID_KEY])
        self._loss = self._loss + runner.batch_metrics[TOTAL_KEY]
        if runner.is_group_end:
            self._update(runner)
            runner.optimizer.zero_grad()
            if not isinstance(runner.scheduler, ReduceLROnPlateau):
                runner.scheduler.step()
            runner.batch_metrics["lr"] = runner.optimizer.param_groups[-1]["lr"]

    def _update(self, runner: Any) -> None:
        scaler = runner.precision.scaler
        scaler.unscale_(runner.optimizer)
        parameters = [
            p for g in runner.optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        norm = get_total_norm([p.grad for p in parameters])
        runner.batch_metrics["grad_norm"] = norm
        self._counts["steps"] += 1
        if runner.agree_on_step(torch.isfinite(norm) & torch.isfinite(self._loss)):
            if self._clip:
                clip_grads_with_norm_(parameters, self._clip, norm)
            scaler.step(runner.optimizer)
            runner.after_update()
        else:
            self._guard.restore()
            self._skip(runner)
        scaler.update()

    def _skip(self, runner: Any) -> None:
        """Counts and lists a skipped update; too many end the run."""
        images = gather_objects((self._images, float(self._loss)))
        is_scaling = all(math.isfinite(loss) for _, loss in images)
        is_scaling = is_scaling and runner.precision.can_still_lower_scale
        self._counts["skipped"] += 1
        self._counts["faults"] += not is_scaling
        names = " ".join(name for part, _ in images for name in part)
        what = "fp16 overflow" if is_scaling else "not finite"
        if is_main():
            self._list(runner.epoch_step, self._counts["steps"], what, names)
        logger.warning(
            "epoch %d step %d skipped (%s): images %s",
            runner.epoch_step, self._counts["steps"], what, names,
        )  # fmt: skip
        self._check(max(self._counts["steps"], MIN_STEPS), runner.epoch_step)

    def _check(self, of_steps: int, epoch: int) -> None:
        faults = self._counts["faults"]
        if faults <= self._max_share * of_steps:
            return
        problem = RunError(
            f"{faults} of {self._counts['steps']} steps of epoch {epoch} had a loss or a gradient "
            f"that is not finite, more than train.max_skipped_share={self._max_share}; their "
            f"images are in {self._file}; lower optimizer.lr, set optimizer.precision=fp32 or "
            "optimizer.clip_grad_norm=1"
        )
        problem.on_every_rank = True
        raise problem

    def _list(self, epoch: int, step: int, what: str, images: str) -> None:
        is_new = not self._file.exists()
        with self._file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("epoch", "step", "reason", "images"))
            writer.writerow((epoch, step, what, images))

    def on_loader_end(self, runner: Any) -> None:
        """The count is a metric of the epoch; an epoch without a single update ends the run."""
        if runner.is_train_loader:
            runner.epoch_metrics["_epoch_"]["skipped_steps"] = self._counts["skipped"]
            if self._counts["faults"] == self._counts["steps"] > 0:
                self._check(self._counts["steps"], runner.epoch_step)


class _BufferGuard:
    """A copy of a network's buffers, to undo what one forward pass did to them."""

    def __init__(self, network: nn.Module) -> None:
        self._buffers = list(network.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]

    def remember(self) -> None:
        """Takes the copy."""
        _copy(self._copies, self._buffers)

    def restore(self) -> None:
        """Puts it back."""
        _copy(self._buffers, self._copies)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies many small tensors in a few calls, one for each type."""
    for dtype in {tensor.dtype for tensor in targets}:
        pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if t.dtype == dtype]
        torch._foreach_copy_([t for t, _ in pairs], [s for _, s in pairs])


class PlateauCallback(ISchedulerCallback):
    """Shows the main metric to a plateau schedule after each epoch; notes the learning rate."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric

    def on_epoch_end(self, runner: Any) -> None:
        """Before the checkpoints, so that they hold the schedule's state after the step."""
        if isinstance(runner.scheduler, ReduceLROnPlateau):
            runner.scheduler.step(runner.epoch_metrics["valid"][self._metric])
        runner.epoch_metrics["_epoch_"]["lr"] = runner.optimizer.param_groups[-1]["lr"]
