"""What a run tells while it runs: a bar and a line an epoch, metrics.csv, TensorBoard. Rank 0 only.

In: Catalyst's batch and epoch metrics. Out: text on standard error and files in the run directory.
"""

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from catalyst.core.callback import Callback
from catalyst.core.logger import ILogger
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from geopose.distributed import gather_objects, is_main
from geopose.files.atomic import atomic_path
from geopose.system.progress import progress_bar

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
_LOSS_S = 1.0  # between two losses beside the bar: to read one waits for the device
_READ_TOGETHER = 50  # batches whose metrics are brought from the device at once


class ProgressCallback(Callback):
    """One bar an epoch and one line of metrics after it, on rank 0."""

    def __init__(self) -> None:
        super().__init__(order=0)

    def on_epoch_start(self, runner: Any) -> None:
        """One bar for the training and the validation batches."""
        total = sum(len(loader) for loader in runner.loaders.values())
        title = f"epoch {runner.epoch_step}/{runner.num_epochs}"
        self._bar = progress_bar(
            total=total, desc=title, unit="batch", leave=False, disable=not is_main()
        )
        self._next_loss = 0.0  # when to show one

    def on_loader_start(self, runner: Any) -> None:
        """A resumed epoch is partly done."""
        if runner.is_train_loader:
            self._bar.update(runner.epoch_batch)

    def on_batch_end(self, runner: Any) -> None:
        """Moves the bar."""
        if is_main() and time.monotonic() >= self._next_loss:
            loss = float(runner.batch_metrics["loss"])
            self._bar.set_postfix_str(f"{runner.loader_key} loss {loss:.3f}")
            self._next_loss = time.monotonic() + _LOSS_S
        self._bar.update()

    def on_epoch_end(self, runner: Any) -> None:
        """Writes the line."""
        self._bar.close()
        if is_main():
            logger.info("epoch %d/%d  %s", runner.epoch_step, runner.num_epochs, _line(runner))

    def on_exception(self, runner: Any) -> None:
        """Leaves the terminal clean."""
        if hasattr(self, "_bar"):
            self._bar.close()


def _line(runner: Any) -> str:
    metrics = runner.epoch_metrics
    train, valid, epoch = metrics["train"], metrics["valid"], metrics["_epoch_"]
    parts = [
        f"train loss {train['loss']:.4f}",
        f"valid loss {valid['loss']:.4f}",
        f"R2 mean {valid['metrics/mean_r2']:.4f}",
        f"AGL {valid['metrics/agl_r2']:.4f}",
        f"flow {valid['metrics/vflow_r2']:.4f}",
    ]
    if "valid_ema" in metrics:
        parts.append(f"EMA mean {metrics['valid_ema']['metrics/mean_r2']:.4f}")
    parts += [
        f"lr {epoch['lr']:.2e}",
        f"{epoch['images_per_s']:.1f} images/s",
        f"waited {100 * epoch['data_wait_share']:.0f} % for data",
    ]
    if epoch["skipped_steps"]:
        parts.append(f"{epoch['skipped_steps']} steps skipped")
    return "  ".join(parts)


class SpeedCallback(Callback):
    """Images per second of training and, on a GPU, the most memory that the epoch took."""

    def __init__(self) -> None:
        super().__init__(order=0)

    def on_loader_start(self, runner: Any) -> None:
        """Starts the clock."""
        self._start, self._images = time.monotonic(), 0
        if runner.is_train_loader and runner.engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_batch_end(self, runner: Any) -> None:
        """Counts the images of all processes."""
        self._images += runner.batch_size * runner.engine.num_processes

    def on_loader_end(self, runner: Any) -> None:
        """`images_per_s` and `gpu_memory_gib` (of the process that takes most)."""
        if not runner.is_train_loader:
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        epoch = runner.epoch_metrics["_epoch_"]
        epoch["images_per_s"] = self._images / seconds
        if runner.engine.device.type == "cuda":
            most = max(gather_objects(torch.cuda.max_memory_allocated()))
            epoch["gpu_memory_gib"] = most / 2**30


class MetricsFileCallback(Callback):
    """`metrics.csv`: a row an epoch with every metric, written whole each time."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(order=0)
        self._path = run_dir / METRICS_FILE
        self._rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": [dict(row) for row in self._rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on below these rows."""
        self._rows = [dict(row) for row in state["rows"]]

    def on_epoch_end(self, runner: Any) -> None:
        """Adds the epoch's row: `epoch`, then `train/loss`, `valid/metrics/mean_r2`, `lr`, ..."""
        row: dict[str, float] = {"epoch": runner.epoch_step}
        for key, values in runner.epoch_metrics.items():
            prefix = "" if key == "_epoch_" else f"{key}/"
            row |= {f"{prefix}{name}": value for name, value in values.items()}
        self._rows.append(row)
        if is_main():
            columns = list(dict.fromkeys(name for row in self._rows for name in row))
            with (
                atomic_path(self._path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self._rows)


class TensorboardLogger(ILogger):
    """Scalars and pictures for TensorBoard; a full disk is an error here and not in a thread.

    Args:
        folder: gets one log a loader, so that training and validation share their charts.
        config: shown as text.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(log_batch_metrics=True, log_epoch_metrics=True)
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}
        self._waiting: list[tuple[int, dict[str, Any]]] = []  # of training batches: step, metrics
        text = yaml.safe_dump(dict(config), sort_keys=False)
        self._writer("_epoch_").add_text("config", f"```yaml\n{text}\n```")

    def _writer(self, key: str) -> SummaryWriter:
        if key not in self._writers:
            self._writers[key] = SummaryWriter(str(self._folder / key))
        return self._writers[key]

    def log_metrics(self, metrics: Mapping[str, Any], scope: str, runner: Any) -> None:
        """Training batches by images seen; loaders and epochs by epoch."""
        if scope == "batch":
            if runner.is_train_loader:
                self._waiting.append((runner.sample_step, dict(metrics)))
                if len(self._waiting) == _READ_TOGETHER:
                    self._write_waiting()
        elif scope == "loader":
            self._scalars(runner.loader_key, metrics, runner.epoch_step, "epoch")
        elif scope == "epoch":
            self._scalars("_epoch_", metrics["_epoch_"], runner.epoch_step, "epoch")

    def _write_waiting(self) -> None:
        """Writes the metrics of the batches since the last time, brought over in one go."""
        waiting, self._waiting = self._waiting, []
        tensors = [x for _, metrics in waiting for x in metrics.values() if isinstance(x, Tensor)]
        numbers = iter(torch.stack([x.double() for x in tensors]).tolist() if tensors else ())
        for step, metrics in waiting:
            read = {k: next(numbers) if isinstance(x, Tensor) else x for k, x in metrics.items()}
            self._scalars("train", read, step, "batch")

    def _scalars(self, key: str, metrics: Mapping[str, Any], step: int, suffix: str) -> None:
        for name, value in metrics.items():
            self._writer(key).add_scalar(f"{name}/{suffix}", float(value), step)

    def log_image(self, tag: str, image: NDArray[np.uint8], runner: Any, scope: str = "") -> None:
        """A picture (H x W x 3 uint8 RGB) of this epoch."""
        writer = self._writer(runner.loader_key)
        writer.add_image(tag, image, runner.epoch_step, dataformats="HWC")

    def flush_log(self) -> None:
        """Puts everything on disk."""
        self._write_waiting()
        for writer in self._writers.values():
            writer.flush()

    def close_log(self) -> None:
        """Ends the logs."""
        self._write_waiting()
        for writer in self._writers.values():
            writer.close()
