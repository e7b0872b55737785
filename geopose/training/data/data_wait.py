"""How long training waits for data: the clock around every batch that a loader hands out.

In: a data set and the arguments of torch's DataLoader. Out: the same batches, and the seconds that
the loop stood still for them, as the epoch metrics `data_wait_s` and `data_wait_share`.
"""

import time
from collections.abc import Iterator
from typing import Any

from catalyst.core.callback import Callback
from torch.utils.data import DataLoader

from geopose.distributed import gather_objects


class TimedLoader(DataLoader):
    """A DataLoader that knows how long its user has waited.

    `wait_s` is the sum over the batches of the current (or last) iteration, in seconds. With no
    worker processes all of reading and augmenting is waiting. It is what this process waited: a GPU
    that still has work queued waits less.
    """

    wait_s = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches as usual; starts counting anew. Starting the workers counts."""
        self.wait_s, start = 0.0, time.perf_counter()
        for batch in super().__iter__():
            self.wait_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
        self.wait_s += time.perf_counter() - start


class DataWaitCallback(Callback):
    """Puts the wait of the training loader into the epoch metrics, of the slowest process.

    `data_wait_s` in seconds and `data_wait_share`, of the time from the first request to the last
    batch's end. Several processes step together, so that the longest wait is everyone's.
    """

    def __init__(self) -> None:
        super().__init__(order=0)
        self._start = 0.0

    def on_loader_start(self, runner: Any) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_loader_end(self, runner: Any) -> None:
        """Training only; validation reads whole images and is no measure of the input."""
        if not runner.is_train_loader:
            return
        seconds = max(time.perf_counter() - self._start, 1e-9)
        wait_s = max(gather_objects(float(runner.loader.wait_s)))
        runner.epoch_metrics["_epoch_"]["data_wait_s"] = wait_s
        runner.epoch_metrics["_epoch_"]["data_wait_share"] = min(1.0, wait_s / seconds)
