"""Reads parts of images ahead of the models: tasks in, RGB arrays out, in processes of their own.

An image is taken from the common list only when there is a process to decode it, and towards the
list's end only when the models are free, so that no process of a run sits on images while another
one has none.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from geopose.errors import RunError
from geopose.inference.pipeline.task import Part, Task

_WATCH_S = 2.0  # how often a decoding process looks whether its parent lives


class Reader:
    """Reads images ahead.

    Args:
        processes: how many decode at once; 0 = none ahead, decode when needed. They are started at
            once, before this process has a GPU context, large models or threads to be copied.
    """

    def __init__(self, processes: int) -> None:
        self.wait_s = 0.0
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            # Spawned ones would import everything again, seconds each.
            context = get_context("fork")
            self._pool = ProcessPoolExecutor(processes, context, _start, (os.getpid(),))
            self._pool.submit(int)  # starts all of them

    def read(
        self, tasks: Sequence[Task], claim: Callable[[], int | None], processes: int, batch: int
    ) -> Iterator[Part]:
        """Parts of images as these are claimed, a few read ahead.

        Args:
            tasks: all tasks of the run.
            claim: gives the number of the next one to take, None at the end.
            processes: how many share the tasks.
            batch: how many parts the models take at once.

        Raises:
            RunError: a decoding process was killed.
        """
        most = self._processes + batch - 1 if self._processes else 0
        waiting: deque[tuple[Task, int, Future[Part] | None]] = deque()
        unread: deque[tuple[Task, int]] = deque()  # of the image that was taken last
        left = len(tasks)  # that nobody has taken, as far as this process knows

        def take(least: int) -> None:
            nonlocal left
            while (left or unread) and len(waiting) < max(
                least, most if unread else min(most, left // processes)
            ):
                if not unread:
                    number = claim()
                    left = 0 if number is None else len(tasks) - number - 1
                    if number is None:
                        return
                    unread.extend((tasks[number], part) for part in range(tasks[number].parts))
                task, part = unread.popleft()
                waiting.append((task, part, self._begin(task, part)))

        while True:
            take(1)
            if not waiting:
                return
            task, number, future = waiting.popleft()
            take(0)
            yield self._wait(task, number, future)

    def _begin(self, task: Task, number: int) -> "Future[Part] | None":
        return None if self._pool is None else self._pool.submit(task.read, number)

    def _wait(self, task: Task, number: int, future: "Future[Part] | None") -> Part:
        started = time.perf_counter()
        try:
            return task.read(number) if future is None else future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that decodes images was killed, perhaps for lack of memory; lower "
                "inference.num_workers and run again"
            ) from error
        finally:
            self.wait_s += time.perf_counter() - started

    def close(self) -> None:
        """Ends the decoding processes; what they were to read is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    """A decoding process leaves signals to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
