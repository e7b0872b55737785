"""Keeps a device busy but not far behind, and measures for how long it had nothing to compute.

A GPU computes while its host goes on. Two batches are given to it at most: enough that it never
waits for the host, and few enough that images which another process could do are not taken early.
"""

from collections import deque
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class _Gap:
    """The time between two batches on a GPU, and what the host waited for in it."""

    end: torch.cuda.Event
    start: torch.cuda.Event
    input_s: float
    output_s: float


class IdleTime:
    """Called around every batch.

    Attributes:
        input_wait_s: time in which the device was idle because there was no image.
        output_wait_s: the same because results could not be handed over.
    """

    def __init__(self, device: torch.device) -> None:
        self.input_wait_s = 0.0
        self.output_wait_s = 0.0
        self._cuda = device.type == "cuda"
        self._input_s = self._output_s = 0.0
        self._end: torch.cuda.Event | None = None
        self._computing: deque[torch.cuda.Event] = deque()
        self._gaps: deque[_Gap] = deque()

    def before(self, input_s: float, output_s: float) -> None:
        """A batch is about to be computed.

        Args:
            input_s: for how long this process has waited for images in all so far.
            output_s: the same for handing over results.
        """
        waited_s = input_s - self._input_s, output_s - self._output_s
        self._input_s, self._output_s = input_s, output_s
        if not self._cuda or self._end is None:
            self._add(*waited_s)
            return
        start = torch.cuda.Event(enable_timing=True)
        start.record()
        self._gaps.append(_Gap(self._end, start, *waited_s))

    def after(self) -> None:
        """A batch's computation has been started; waits until the one before it is finished."""
        if not self._cuda:
            return
        self._end = torch.cuda.Event(enable_timing=True)
        self._end.record()
        self._computing.append(self._end)
        if len(self._computing) > 1:
            self._computing.popleft().synchronize()
        self._measure()

    def finish(self, input_s: float, output_s: float) -> None:
        """All is computed and written; arguments as for `before`."""
        if self._cuda:
            torch.cuda.synchronize()
            self._measure()
        self._add(input_s - self._input_s, output_s - self._output_s)

    def _measure(self) -> None:
        while self._gaps and self._gaps[0].start.query():
            gap = self._gaps.popleft()
            idle_s = gap.end.elapsed_time(gap.start) / 1000.0
            input_s = min(gap.input_s, idle_s)
            self._add(input_s, min(gap.output_s, idle_s - input_s))

    def _add(self, input_s: float, output_s: float) -> None:
        self.input_wait_s += input_s
        self.output_wait_s += output_s
