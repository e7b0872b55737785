"""Work done by threads while the models compute: bounded, and its errors are not lost."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore


class Background:
    """Runs jobs in threads.

    Args:
        threads: how many jobs run at once.
        waiting: how many more may wait; whoever brings another one is held up.
        begin: called by every thread before its first job.
    """

    def __init__(self, threads: int, waiting: int, begin: Callable[[], None] | None = None) -> None:
        self.wait_s = 0.0
        self._pool = ThreadPoolExecutor(threads, "writer", begin)
        self._room = BoundedSemaphore(threads + waiting)
        self._problem: BaseException | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Hands over a job, as soon as there is room for it; raises what an earlier one raised."""
        started = time.perf_counter()
        self._room.acquire()
        self.wait_s += time.perf_counter() - started
        self._raise_problem()
        self._pool.submit(job).add_done_callback(self._done)

    def finish(self) -> None:
        """Waits for all jobs; raises what the first of them raised that failed."""
        started = time.perf_counter()
        self._pool.shutdown()
        self.wait_s += time.perf_counter() - started
        self._raise_problem()

    def stop(self) -> None:
        """Drops the jobs that wait and lets those that run come to their end."""
        self._pool.shutdown(cancel_futures=True)

    def _done(self, job: "Future[None]") -> None:
        self._room.release()
        if not job.cancelled() and (problem := job.exception()) is not None:
            self._problem = self._problem or problem

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem
