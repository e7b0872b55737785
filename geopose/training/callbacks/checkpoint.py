"""Which epochs of a run are worth keeping: the best checkpoint and the best few of a metric."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalyst.core.callback import ICheckpointCallback

from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.distributed import is_main, together
from geopose.errors import RunError
from geopose.files.atomic import atomic_path


def rank_of(value: float, mode: str) -> float:
    """A number that is lower for better metrics; an undefined metric is the worst there is.

    Args:
        value: the metric.
        mode: `max` or `min`: what is better.
    """
    if not math.isfinite(value):
        return math.inf
    return -value if mode == "max" else value


class CheckpointCallback(ICheckpointCallback):
    """Keeps `best.pth` and the best few epochs by a metric; rank 0 writes.

    The files hold what inference needs and nothing more; what a resumed training needs is in
    `last.pth`.

    Args:
        folder: `checkpoints_<name>` of the run.
        metric: validation metric that decides; `mode` is "max" or "min".
        top_k: how many of the best epochs are kept.
        header: what every checkpoint of the run holds: `checkpoint_data`, `channel_order`.
        uses_ema: keep the averaged weights, judged by their own validation.
    """

    def __init__(
        self,
        folder: Path,
        metric: str,
        mode: str,
        top_k: int,
        header: Mapping[str, Any],
        uses_ema: bool = False,
    ) -> None:
        super().__init__()
        self._folder, self._metric, self._mode = folder, metric, mode
        self._top_k, self._header, self._uses_ema = top_k, header, uses_ema
        self._kept: list[tuple[float, str]] = []
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The history: the best value and the files kept."""
        return {"best": self.best, "kept": [list(entry) for entry in self._kept]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from that history."""
        self.best = state["best"]
        self._kept = [(rank, name) for rank, name in state["kept"]]

    def on_epoch_end(self, runner: Any) -> None:
        """Writes whatever this epoch earned; an undefined metric is never the best."""
        value = float(
            runner.epoch_metrics["valid_ema" if self._uses_ema else "valid"][self._metric]
        )
        entry = (rank_of(value, self._mode), f"epoch_{runner.epoch_step:04d}.pth")
        ranked = sorted([*self._kept, entry], key=lambda item: item[0])
        self._kept, dropped = ranked[: self._top_k], ranked[self._top_k :]
        is_best = self._kept[0] == entry
        if is_best:
            self.best = value
        names = [entry[1]] if entry in self._kept else []
        names += ["best.pth"] if is_best else []
        together(lambda: self._write(runner, names, [name for _, name in dropped]))

    def _write(self, runner: Any, names: list[str], dropped: list[str]) -> None:
        if not is_main():
            return
        try:
            if names:
                self._folder.mkdir(parents=True, exist_ok=True)
                first = self._folder / names[0]
                save_checkpoint(first, self._payload(runner))
                for name in names[1:]:
                    with atomic_path(self._folder / name) as temporary:
                        shutil.copyfile(first, temporary)
            for name in dropped:
                (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self._folder}: cannot write a checkpoint ({error})") from error

    def _payload(self, runner: Any) -> dict[str, Any]:
        network = runner.ema.module if self._uses_ema else runner.network
        metrics = {key: dict(values) for key, values in runner.epoch_metrics.items()}
        data = {**self._header["checkpoint_data"], "epoch": runner.epoch_step, "metrics": metrics}
        return {
            **self._header,
            "model_state_dict": network.state_dict(),
            "epoch": runner.epoch_step,
            "metrics": metrics,
            "checkpoint_data": data,
        }
