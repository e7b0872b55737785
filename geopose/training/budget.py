"""A limit on the training time of a run, to which the learning-rate schedule can be tied."""

import time

from geopose.distributed import broadcast_number


class TimeBudget:
    """Counts from its making. Rank 0's clock is everybody's, or rates would differ by rank.

    Args:
        minutes: the limit; None = no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else 60.0 * minutes
        self._start = time.monotonic()
        self.share_used = 0.0  # 0..1, as of the last update; stays 0 where there is no limit

    def seconds_used(self) -> float:
        """Time since the start, with that of earlier sessions."""
        return time.monotonic() - self._start

    def add(self, seconds: float) -> None:
        """Counts the time of earlier sessions of a resumed run."""
        self._start -= seconds

    def update(self) -> None:
        """Reads the clock; every rank must call it equally often."""
        if self._seconds is not None:
            self.share_used = broadcast_number(min(1.0, self.seconds_used() / self._seconds))
