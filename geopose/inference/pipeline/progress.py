"""One bar for the whole run, whichever processes do it."""

import threading
from types import TracebackType

from tqdm import tqdm

from geopose.errors import GeoposeError
from geopose.inference.submission.plan import Plan
from geopose.inference.workers.coordinator import Coordinator
from geopose.system.progress import progress_bar

_REFRESH_S = 0.25
IMAGE = 10**6  # parts that an image is counted in; they are whole numbers for the coordinator
_BAR = "{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class ImageProgress:
    """Counts a batch's work while it is done: an image of many models and views takes long.

    Args:
        coordinator: counts.
        images: of the batch.
        runs: of networks on each image.
    """

    def __init__(self, coordinator: Coordinator, images: int, runs: int) -> None:
        self._coordinator = coordinator
        self._images = images
        self._part = IMAGE // (runs + 1)  # writing is the last
        self._left = IMAGE

    def step(self) -> None:
        """A network has run on all images of the batch."""
        self._left -= self._part
        self._coordinator.advance(self._images * self._part)

    def finish(self) -> None:
        """One of the images is written, or has failed."""
        self._coordinator.advance(self._left)


class Progress:
    """Shows how far all processes together are, while the block runs.

    Args:
        coordinator: counts.
        plan: what is to do; images kept from earlier runs count as done.
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
        done = self._plan.images - len(self._plan.tasks)
        # smoothing 0: the mean speed, because images of several processes end in bursts.
        with progress_bar(
            total=self._plan.images, initial=done, unit="image", smoothing=0, bar_format=_BAR
        ) as bar:
            while not self._stop.wait(_REFRESH_S):
                self._show(bar, done)
            self._show(bar, done)

    def _show(self, bar: tqdm, done: int) -> None:
        try:
            bar.update(done + self._coordinator.advanced() / IMAGE - bar.n)
        except GeoposeError:  # the run will notice, and say so
            self._stop.set()
        bar.refresh()
