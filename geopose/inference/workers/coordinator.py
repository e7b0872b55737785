"""The processes of a run and what they agree on: decisions, images to take, reports.

Everything goes through a key-value store, never through collective calls: a process that is killed
leaves no other one waiting in an exchange. One process leads: it decides what is to do, watches the
others and finishes the run. In a single process, and under torchrun in the first one, it works as
well; the parent of spawned processes only leads.
"""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist

from geopose.errors import GeoposeError, RunError
from geopose.inference.predict.unknown_gsd import UnknownGsds

Result = TypeVar("Result")

_POLL_S = 0.05


@dataclass
class WorkReport:
    """What one process did in a run.

    Attributes:
        predicted: images whose files it wrote, with models.
        drawn: images of which it only drew the picture.
        failed: (image, line for the user) of each image that failed by itself.
        work_s: from the first image to the last file.
        input_wait_s: of these, the time in which the models had no image.
        output_wait_s: of these, the time in which they could not hand over a result.
        unknown_gsds: images that networks were shown at a gsd that they have not learned from.
        problem: what ended the process's work early.
    """

    predicted: int = 0
    drawn: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    work_s: float = 0.0
    input_wait_s: float = 0.0
    output_wait_s: float = 0.0
    unknown_gsds: UnknownGsds = field(default_factory=UnknownGsds)
    problem: GeoposeError | None = None


def _always_there(_: int) -> str | None:
    return None


class Coordinator:
    """One process's view of the others.

    Args:
        store: shared by all of them.
        rank: number of this process among those that work; None: it only leads.
        size: how many work.
        leads: whether this one decides.
        lost: for the leader: why a process will never report ("was killed by SIGKILL"), or None.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int | None,
        size: int,
        leads: bool,
        lost: Callable[[int], str | None] = _always_there,
    ) -> None:
        self._store = store
        self.rank = rank
        self.size = size
        self.leads = leads
        self._lost = lost

    @staticmethod
    def alone() -> "Coordinator":
        """A single process that leads and works."""
        return Coordinator(dist.HashStore(), 0, 1, leads=True)

    def part(self, name: str) -> "Coordinator":
        """The same coordinator with a memory of its own, for one of several runs in turn."""
        store = dist.PrefixStore(name, self._store)
        return Coordinator(store, self.rank, self.size, self.leads, self._lost)

    # ------------------------------------------------------------ decisions

    def decide(self, name: str, step: Callable[[], Result]) -> Result:
        """The leader's result of a step, on every process; if it fails, all raise its error.

        Args:
            name: each once.
            step: run by the leader alone; what it returns is pickled.

        Raises:
            GeoposeError: the step's; on the other processes marked `on_every_rank`.
        """
        if not self.leads:
            found = self._wait_for(name)
            if isinstance(found, GeoposeError):
                found.on_every_rank = True
                raise found
            return found
        try:
            result = step()
        except GeoposeError as error:
            self._put(name, (error,))
            raise
        self._put(name, (result,))
        return result

    # ------------------------------------------------------------ images

    def claim(self, count: int) -> int | None:
        """Number of the next image of `count` that nobody has taken, each once; None at the end."""
        number = self._call(lambda: self._store.add("claimed", 1)) - 1
        return number if number < count else None

    def advance(self, parts: int) -> None:
        """Counts work as done; how much an image is, is up to those who count."""
        self._call(lambda: self._store.add("advanced", parts))

    def advanced(self) -> int:
        """What all processes have counted."""
        return self._call(lambda: self._store.add("advanced", 0))

    # ------------------------------------------------------------ reports

    def say_ready(self) -> None:
        """This process could start now."""
        self._put(f"ready/{self.rank}", True)

    def report(self, report: WorkReport) -> None:
        """This process's last word."""
        self._put(f"report/{self.rank}", report)

    def await_ready(self) -> None:
        """The leader waits until every process is ready or has given up.

        Raises:
            GeoposeError: none is ready; the first process's reason.
        """
        reasons: list[GeoposeError] = []
        for rank in range(self.size):
            while True:
                lost = self._lost(rank)
                report = self._found(f"report/{rank}")
                if report is not None or lost:
                    reasons.append(_reason(rank, report, lost))
                if report is not None or lost or self._found(f"ready/{rank}"):
                    break
                time.sleep(_POLL_S)
        if len(reasons) == self.size:
            raise reasons[0]

    def reports(self) -> list[WorkReport]:
        """The leader waits for every process's report; a lost process gets one that says so."""
        reports = []
        for rank in range(self.size):
            while True:
                lost = self._lost(rank)  # before the report: it may be lost right after it
                report = self._found(f"report/{rank}")
                if report is not None or lost:
                    break
                time.sleep(_POLL_S)
            if report is None:
                report = WorkReport(problem=_reason(rank, None, lost))
            elif report.problem is not None and self.size > 1:
                kind, line = type(report.problem), str(report.problem)
                report.problem = kind(f"process {rank} stopped: {line}")
            reports.append(report)
        return reports

    # ------------------------------------------------------------ the store

    def _wait_for(self, name: str) -> Any:
        while (found := self._found(name)) is None:
            time.sleep(_POLL_S)
        return found[0]

    def _found(self, name: str) -> Any:
        if not self._call(lambda: self._store.check([name])):
            return None
        return pickle.loads(self._call(lambda: self._store.get(name)))

    def _put(self, name: str, value: Any) -> None:
        content: Any = pickle.dumps(value)  # the store takes bytes, whatever its types say
        self._call(lambda: self._store.set(name, content))

    def _call(self, ask: Callable[[], Result]) -> Result:
        try:
            return ask()
        except RuntimeError as error:  # all of torch.distributed's are
            raise RunError("lost the process that hands out the images; run again") from error


def _reason(rank: int, report: WorkReport | None, lost: str | None) -> GeoposeError:
    if report is not None and report.problem is not None:
        return report.problem
    return RunError(f"process {rank} {lost}")
