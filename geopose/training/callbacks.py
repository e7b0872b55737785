"""What happens around a training step: loss, backward, optimizer, score, checkpoints, progress.

Catalyst's callbacks of the same purpose are not used where they were found wrong: its best
checkpoint holds the current weights, gradient clipping fails, every rank writes the same file,
and validation counts padded duplicates.
"""

import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from catalyst.core.callback import (
    Callback,
    CallbackOrder,
    IBackwardCallback,
    ICheckpointCallback,
    ICriterionCallback,
    IMetricCallback,
    IOptimizerCallback,
    ISchedulerCallback,
)
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from geopose.checkpoints.files import save_checkpoint
from geopose.data.io import atomic_path
from geopose.distributed import gather_objects, is_main
from geopose.errors import RunError
from geopose.keys import (
    INPUT_CITY_NAME,
    INPUT_IMAGE_ID_KEY,
    OUTPUT_AGL_MASK,
    OUTPUT_VFLOW_ANGLE,
    OUTPUT_VFLOW_SCALE,
    TARGET_AGL_MASK,
    TARGET_VFLOW_ANGLE,
    TARGET_VFLOW_SCALE,
)
from geopose.metrics import ScoreAccumulator
from geopose.training.budget import TimeBudget
from geopose.training.mixup import mixed_loss
from geopose.training.panels import draw_panel

logger = logging.getLogger(__name__)

MAX_PANELS = 4  # prediction panels an epoch


class LossCallback(ICriterionCallback):
    """Computes the loss of a batch and its mean over the loader, over all processes."""

    def on_loader_start(self, runner: Any) -> None:
        """Forgets the previous loader."""
        self._sums: dict[str, float] = {}
        self._count = 0

    def on_batch_end(self, runner: Any) -> None:
        """Puts `loss` and one entry per term into the batch metrics."""
        losses = mixed_loss(runner.criterion, runner.batch)
        if runner.is_train_loader and not math.isfinite(float(losses["loss"].detach())):
            ids = ", ".join(map(str, runner.batch[INPUT_IMAGE_ID_KEY]))
            raise RunError(
                f"the loss is {float(losses['loss'])} in epoch {runner.epoch_step}, images {ids}; "
                "lower optimizer.lr, set optimizer.precision=fp32 or optimizer.clip_grad_norm=1"
            )
        runner.batch_metrics.update(losses)
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) * runner.batch_size
        self._count += runner.batch_size

    def on_loader_end(self, runner: Any) -> None:
        """Means over every sample of the loader, each counted once."""
        parts = gather_objects((self._sums, self._count))
        total = sum(count for _, count in parts)
        for name in sorted({name for sums, _ in parts for name in sums}):
            runner.loader_metrics[name] = sum(sums.get(name, 0.0) for sums, _ in parts) / total


class BackwardCallback(IBackwardCallback):
    """Backward pass of a share of the loss: gradients of `accumulation` batches are averaged."""

    def __init__(self, accumulation: int) -> None:
        super().__init__()
        self._accumulation = accumulation

    def on_loader_start(self, runner: Any) -> None:
        """Batches are counted anew each epoch."""
        self._batches = 0

    def on_batch_end(self, runner: Any) -> None:
        """Training batches only; what remains in the metrics is for the logs."""
        if runner.is_train_loader:
            first = self._batches - self._batches % self._accumulation
            group = min(self._accumulation, runner.loader_batch_len - first)
            self._batches += 1
            runner.engine.backward(runner.batch_metrics["loss"] / group)
        runner.batch_metrics.update(
            {key: value.detach() for key, value in runner.batch_metrics.items()}
        )


class OptimizerCallback(IOptimizerCallback):
    """Clips, steps and moves the learning rate once every `accumulation` batches."""

    def __init__(self, accumulation: int, clip_grad_norm: float | None) -> None:
        super().__init__()
        self._accumulation = accumulation
        self._clip = clip_grad_norm

    def on_loader_start(self, runner: Any) -> None:
        """Batches are counted anew each epoch."""
        self._batches = 0

    def on_batch_end(self, runner: Any) -> None:
        """The last batch of an epoch steps as well, so that no gradient is left over."""
        if not runner.is_train_loader:
            return
        self._batches += 1
        if self._batches % self._accumulation and self._batches < runner.loader_batch_len:
            return
        if self._clip:
            norm = runner.engine.clip_grad_norm_(runner.model.parameters(), self._clip)
            runner.batch_metrics["grad_norm"] = norm
        runner.optimizer.step()
        runner.optimizer.zero_grad()
        if not isinstance(runner.scheduler, ReduceLROnPlateau):
            runner.scheduler.step()
        runner.batch_metrics["lr"] = runner.optimizer.param_groups[-1]["lr"]


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


class ScoreCallback(IMetricCallback):
    """The official score over the validation images, in double precision, each counted once."""

    def on_loader_start(self, runner: Any) -> None:
        """Starts empty."""
        self._score = ScoreAccumulator()

    def on_batch_end(self, runner: Any) -> None:
        """Adds every image of a validation batch."""
        if runner.is_train_loader:
            return
        batch = {key: _to_numpy(value) for key, value in runner.batch.items()}
        for i, city in enumerate(batch[INPUT_CITY_NAME]):
            self._score.update(
                city,
                batch[OUTPUT_AGL_MASK][i, 0],
                float(batch[OUTPUT_VFLOW_SCALE][i, 0]),
                float(batch[OUTPUT_VFLOW_ANGLE][i, 0]),
                batch[TARGET_AGL_MASK][i, 0],
                float(batch[TARGET_VFLOW_SCALE][i, 0]),
                float(batch[TARGET_VFLOW_ANGLE][i, 0]),
            )

    def on_loader_end(self, runner: Any) -> None:
        """`metrics/mean_r2` (the score), its two halves, and the values of every city."""
        if runner.is_train_loader:
            return
        total = ScoreAccumulator()
        for state in gather_objects(self._score.state()):
            total.merge(state)
        runner.loader_metrics.update(flat_metrics(total.result()))


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """A score as evaluate.py writes it, as `metrics/...` scalars for logs and checkpoints."""
    cities = result["cities"]
    flat = {"metrics/mean_r2": result["score"]}
    for name in ("agl_r2", "vflow_r2"):
        flat[f"metrics/{name}"] = sum(city[name] for city in cities.values()) / len(cities)
    for city, values in cities.items():
        flat[f"metrics/{city}/score"] = values["score"]
        for kind in ("mean", "rms"):
            flat |= {f"metrics/{city}/{kind}/{key}": v for key, v in values[kind].items()}
    return flat


def _to_numpy(value: Any) -> Any:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value


def _rank_of(value: float, mode: str) -> float:
    """A number that is lower for better metrics; an undefined metric is the worst there is."""
    if not math.isfinite(value):
        return math.inf
    return -value if mode == "max" else value


class EarlyStoppingCallback(Callback):
    """Ends the run after `patience` epochs without a better metric."""

    def __init__(self, patience: int, metric: str, mode: str) -> None:
        super().__init__(order=CallbackOrder.external)
        self._patience, self._metric, self._mode = patience, metric, mode
        self._best = math.inf
        self._waited = 0

    def on_epoch_end(self, runner: Any) -> None:
        """Compares and counts."""
        rank = _rank_of(float(runner.epoch_metrics["valid"][self._metric]), self._mode)
        self._waited = 0 if rank < self._best else self._waited + 1
        self._best = min(self._best, rank)
        runner.need_early_stop = runner.need_early_stop or self._waited >= self._patience


class CheckpointCallback(ICheckpointCallback):
    """Keeps `best.pth`, the best few and, in the first folder, `last.pth`; rank 0 writes.

    Args:
        folder: `checkpoints_<name>` of the run.
        metric: validation metric that decides; `mode` is "max" or "min".
        top_k: how many of the best epochs are kept.
        keep_last: also write `last.pth`.
        header: what every checkpoint of the run holds: `checkpoint_data`, `channel_order`.
    """

    def __init__(
        self,
        folder: Path,
        metric: str,
        mode: str,
        top_k: int,
        keep_last: bool,
        header: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.order = CallbackOrder.scheduler + 10  # after the schedule has stepped
        self._folder, self._metric, self._mode = folder, metric, mode
        self._top_k, self._keep_last, self._header = top_k, keep_last, header
        self._kept: list[tuple[float, Path]] = []
        self.best: float | None = None

    def on_epoch_end(self, runner: Any) -> None:
        """Writes whatever this epoch earned; an undefined metric is never the best."""
        value = float(runner.epoch_metrics["valid"][self._metric])
        rank = _rank_of(value, self._mode)
        path = self._folder / f"epoch_{runner.epoch_step:04d}.pth"
        ranked = sorted([*self._kept, (rank, path)], key=lambda item: item[0])
        keep, drop = ranked[: self._top_k], ranked[self._top_k :]
        is_best = keep[0][1] == path
        if is_best:
            self.best = value
        self._kept = keep
        if is_main():
            self._write(runner, path if (rank, path) in keep else None, is_best)
            for _, old in drop:
                old.unlink(missing_ok=True)
        runner.engine.wait_for_everyone()

    def _write(self, runner: Any, path: Path | None, is_best: bool) -> None:
        names = [path] if path else []
        names += [self._folder / "best.pth"] if is_best else []
        names += [self._folder / "last.pth"] if self._keep_last else []
        if not names:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(names[0], self._payload(runner))
            for name in names[1:]:
                with atomic_path(name) as temporary:
                    shutil.copyfile(names[0], temporary)
        except OSError as error:
            raise RunError(f"{self._folder}: cannot write a checkpoint ({error})") from error

    def _payload(self, runner: Any) -> dict[str, Any]:
        metrics = {key: dict(values) for key, values in runner.epoch_metrics.items()}
        data = {**self._header["checkpoint_data"], "epoch": runner.epoch_step, "metrics": metrics}
        return {
            **self._header,
            "model_state_dict": runner.engine.unwrap_model(runner.model).state_dict(),
            "optimizer_state_dict": runner.optimizer.state_dict(),
            "scheduler_state_dict": runner.scheduler.state_dict(),
            "epoch": runner.epoch_step,
            "metrics": metrics,
            "checkpoint_data": data,
        }


class ProgressCallback(Callback):
    """One bar an epoch and one line of metrics after it, on rank 0."""

    def __init__(self) -> None:
        super().__init__(order=CallbackOrder.external + 10)

    def on_epoch_start(self, runner: Any) -> None:
        """One bar for the training and the validation batches."""
        self._start, self._samples = time.monotonic(), 0
        total = sum(len(loader) for loader in runner.loaders.values())
        title = f"epoch {runner.epoch_step}/{runner.num_epochs}"
        self._bar = tqdm(total=total, desc=title, unit="batch", leave=False, disable=not is_main())

    def on_batch_end(self, runner: Any) -> None:
        """Moves the bar."""
        self._bar.set_postfix_str(f"{runner.loader_key} loss {runner.batch_metrics['loss']:.3f}")
        self._bar.update()

    def on_loader_end(self, runner: Any) -> None:
        """Notes the speed of the training loader."""
        if runner.is_train_loader:
            seconds = time.monotonic() - self._start
            runner.epoch_metrics["_epoch_"]["images_per_s"] = runner.loader_sample_step / seconds

    def on_epoch_end(self, runner: Any) -> None:
        """Writes the line."""
        self._bar.close()
        train, valid = runner.epoch_metrics["train"], runner.epoch_metrics["valid"]
        epoch = runner.epoch_metrics["_epoch_"]
        if is_main():
            logger.info(
                "epoch %d/%d  train loss %.4f  valid loss %.4f  R2 mean %.4f  AGL %.4f  flow %.4f"
                "  lr %.2e  %.1f images/s  waited %.0f %% for data",
                runner.epoch_step,
                runner.num_epochs,
                train["loss"],
                valid["loss"],
                valid["metrics/mean_r2"],
                valid["metrics/agl_r2"],
                valid["metrics/vflow_r2"],
                epoch["lr"],
                epoch["images_per_s"],
                100 * epoch["data_wait_share"],
            )

    def on_exception(self, runner: Any) -> None:
        """Leaves the terminal clean."""
        if hasattr(self, "_bar"):
            self._bar.close()


class TimeBudgetCallback(Callback):
    """Ends the run when its time is up, in the middle of an epoch if need be; then validates."""

    def __init__(self, budget: TimeBudget) -> None:
        super().__init__(order=CallbackOrder.external)
        self._budget = budget
        self._is_over = False

    def on_batch_start(self, runner: Any) -> None:
        """All ranks read the clock, and end, at the same batch."""
        if runner.is_train_loader:
            self._budget.update()

    def on_batch_end(self, runner: Any) -> None:
        """Asks Catalyst to leave the training loader."""
        if runner.is_train_loader and self._budget.share_used >= 1.0:
            self._is_over = runner.need_early_stop = True

    def on_loader_end(self, runner: Any) -> None:
        """The flag ended this loader only; validation must not be cut short by it."""
        runner.need_early_stop = False

    def on_epoch_end(self, runner: Any) -> None:
        """No further epoch."""
        runner.need_early_stop = runner.need_early_stop or self._is_over


class PanelCallback(Callback):
    """Prediction panels of the first validation images, to TensorBoard."""

    def __init__(self, channel_order: str) -> None:
        super().__init__(order=CallbackOrder.metric + 1)
        self._channel_order = channel_order

    def on_batch_end(self, runner: Any) -> None:
        """One panel for each of the first few validation batches, on rank 0."""
        if runner.is_train_loader or not is_main() or self._shown >= MAX_PANELS:
            return
        self._shown += 1
        name = str(runner.batch[INPUT_IMAGE_ID_KEY][0])
        runner.log_image(tag=name, image=draw_panel(runner.batch, self._channel_order))

    def on_loader_start(self, runner: Any) -> None:
        """Counts anew."""
        self._shown = 0


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Every rank validates with rank 0's BatchNorm statistics, which are those that are saved."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)
