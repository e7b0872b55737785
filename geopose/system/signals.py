"""Signals with which a scheduler announces the end: noted when they come, obeyed between steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """While entered, SIGTERM and SIGUSR1 set `number` and do nothing else.

    Attributes:
        number: the signal that came last; 0 = none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def ignore_in_worker() -> None:
    """For loader workers: a signal to the whole job must not end them before the last save.

    Python ends what is left of its children with SIGTERM and waits for them, so they must have
    been ended before (geopose.training.data.loaders.end_workers).
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
