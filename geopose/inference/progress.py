"""One bar for the whole run, whichever processes do it."""

import threading
from types import TracebackType

from tqdm import tqdm

from geopose.errors import GeoposeError
from geopose.inference.crew import Crew
from geopose.inference.plan import Plan

_REFRESH_S = 0.25


class Progress:
    """Shows how far all processes together are, while the block runs.

    Args:
        crew: counts.
        plan: what is to do; images kept from earlier runs count as done.
        shown: False: show nothing.
    """

    def __init__(self, crew: Crew, plan: Plan, shown: bool) -> None:
        self._crew = crew
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
        with tqdm(total=self._plan.images, initial=done, unit="image", smoothing=0) as bar:
            while not self._stop.wait(_REFRESH_S):
                self._show(bar, done)
            self._show(bar, done)

    def _show(self, bar: tqdm, done: int) -> None:
        try:
            bar.update(done + self._crew.settled() - bar.n)
        except GeoposeError:  # the run will notice, and say so
            self._stop.set()
        bar.refresh()
