"""One bar for the whole run, whichever processes do it."""

import threading
from types import TracebackType

from tqdm import tqdm

from geopose.errors import GeoposeError
from geopose.inference.pipeline.task import Plan
from geopose.inference.workers.coordinator import Coordinator
from geopose.system.progress import progress_bar

_REFRESH_S = 0.25
PART = 10**6  # what a part of an image counts; steps are whole numbers for the coordinator
_BAR = "{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class PartProgress:
    """Counts a batch's work while it is done: many models and views take long.

    Args:
        coordinator: counts.
        count: parts of images in the batch.
        runs: of networks on each of them.
    """

    def __init__(self, coordinator: Coordinator, count: int, runs: int) -> None:
        self._coordinator = coordinator
        self._count = count
        self._step = PART // (runs + 1)  # writing is the last
        self._left = PART

    def step(self) -> None:
        """A network has run on all parts of the batch."""
        self._left -= self._step
        self._coordinator.advance(self._count * self._step)

    def finish(self) -> None:
        """One of the parts is written, or has failed."""
        self._coordinator.advance(self._left)


class Progress:
    """Shows how far all processes together are, while the block runs.

    Args:
        coordinator: counts.
        plan: what is to do; images kept from earlier runs count as done. Where images have several
            parts, these are counted.
        shown: False: show nothing.
    """

    def __init__(self, coordinator: Coordinator, plan: Plan, shown: bool) -> None:
        self._coordinator = coordinator
        self._plan = plan
        self._shown = shown
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        if self._shown:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._shown:
            self._thread.join()

    def _run(self) -> None:
        tiled = self._plan.parts > len(self._plan.tasks)
        done = 0 if tiled else self._plan.images - len(self._plan.tasks)
        # smoothing 0: the mean speed, because images of several processes end in bursts.
        with progress_bar(
            total=done + self._plan.parts, initial=done, unit="tile" if tiled else "image",
            smoothing=0, bar_format=_BAR,
        ) as bar:  # fmt: skip
            while not self._stop.wait(_REFRESH_S):
                self._show(bar, done)
            self._show(bar, done)

    def _show(self, bar: tqdm, done: int) -> None:
        try:
            bar.update(done + self._coordinator.advanced() / PART - bar.n)
        except GeoposeError:  # the run will notice, and say so
            self._stop.set()
        bar.refresh()
