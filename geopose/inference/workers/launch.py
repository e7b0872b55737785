"""Brings the processes of a run together: those it starts itself, or those of a launcher.

Ports are chosen by the system or by the launcher. No process waits for another one in a collective
call; the leader sees that one is lost by its exit code, or by its silence.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from multiprocessing.context import SpawnProcess

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from geopose import distributed
from geopose.cli import setup_logging
from geopose.errors import GeoposeError, InputError, RunError
from geopose.inference.workers.coordinator import Coordinator
from geopose.system.cores import usable_cores
from geopose.system.devices import use_device

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_MEETING_TIME = timedelta(minutes=5)
_PULSE_S = 0.2
_SILENCE_S = 300.0  # only launchers that do not watch their processes let it come to this
_FAREWELL_S = 5.0  # for a process to end by itself after the run's outcome is known
_STOPPING_S = 60.0  # to finish the file it writes and the layer it computes


# ---------------------------------------------------------------- processes started here


@contextmanager
def spawned_coordinator(
    processes: int, work: Callable[[Coordinator], object]
) -> Iterator[Coordinator]:
    """Starts processes on this machine; gives the view of a leader that does not work itself.

    Args:
        processes: how many.
        work: what each of them does with its own view; importable, and pickled.
    """
    # This process keeps the meeting point, so its port cannot be lost to anybody else.
    store = dist.TCPStore(_HOST, 0, None, True, _MEETING_TIME, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_child, args=(rank, processes, store.port, work))
        for rank in range(processes)
    ]
    patience_s = 0.0
    try:
        for child in children:
            child.start()
        yield Coordinator(store, None, processes, True, lambda rank: _how_it_ended(children[rank]))
        patience_s = _FAREWELL_S
    except GeoposeError:
        patience_s = _FAREWELL_S
        raise
    finally:
        _end(children, patience_s)


def _how_it_ended(child: SpawnProcess) -> str | None:
    code = child.exitcode
    if code is None:
        return None
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _end(children: list[SpawnProcess], patience_s: float) -> None:
    """Waits for the processes to end by themselves, then asks, then insists."""
    started = [child for child in children if child.pid is not None]
    for ask, seconds in ((None, patience_s), ("terminate", _STOPPING_S), ("kill", None)):
        left = [child for child in started if child.is_alive()]
        if ask is not None:
            for child in left:
                getattr(child, ask)()
        until = time.monotonic() + (seconds or 0.0)
        for child in left:
            child.join(None if seconds is None else max(0.0, until - time.monotonic()))


def _child(rank: int, processes: int, port: int, work: Callable[[Coordinator], object]) -> None:
    """One of the spawned processes."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
    )
    setup_logging()
    _end_with_parent()
    torch.set_num_threads(max(1, usable_cores() // processes))
    use_device(distributed.local_device())
    store = dist.TCPStore(_HOST, port, None, False, _MEETING_TIME)
    with stop_on_signals():
        try:
            work(Coordinator(store, rank, processes, leads=False))
        except GeoposeError as error:  # the leader says it
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


def _end_with_parent() -> None:
    """Stops this process as a user would if its parent is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Lets SIGTERM end a block as orderly as Ctrl-C does; whatever follows the first is ignored.

    Files being written are finished or removed on the way out.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        for each in earlier:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    earlier = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in earlier:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)


def process_count(wanted: int | None) -> int:
    """How many processes predict on this machine: as wanted, else one for each visible GPU.

    Raises:
        InputError: fewer than one, or more than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if wanted is None:
        return max(1, gpus)
    if wanted < 1:
        raise InputError(f"--nproc is {wanted}, must be 1 or more")
    if gpus and wanted > gpus:
        raise InputError(
            f"--nproc is {wanted}, but {gpus} GPUs are visible; to use the CPU instead set "
            "CUDA_VISIBLE_DEVICES to nothing"
        )
    return wanted


def run_until_stopped(
    coordinator: AbstractContextManager[Coordinator], work: Callable[[Coordinator], object]
) -> None:
    """Does a run's work with its processes; a signal ends it in good order, which is said."""
    with stop_on_signals():
        try:
            with coordinator as members:
                work(members)
        except (KeyboardInterrupt, SystemExit):
            if distributed.is_main():
                logger.error("stopped; what is finished is kept, run again to go on")
            raise


# ---------------------------------------------------------------- processes of a launcher


@contextmanager
def launched_coordinator() -> Iterator[Coordinator]:
    """Joins the processes that torchrun or another launcher has started; the first one leads.

    Raises:
        RunError: they do not come together.
    """
    use_device(distributed.local_device())
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_MEETING_TIME)))
        session = _Session(store, rank)
    except RuntimeError as error:
        raise RunError("cannot reach the first process; check the launcher's address") from error
    with session.pulse():
        lost = Silence(session.beats)
        yield Coordinator(session.store, rank, size, rank == 0, lost)


class _Session:
    """A part of the store for these processes alone.

    torchrun may keep its store when it starts the processes again, with everything that the former
    ones left in it. So the first process opens a new part, and tells it to whoever asks.
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._root = dist.PrefixStore("geopose", store)
        self._rank = rank
        self._answered = 0
        self._name = f"session-{self._root.add('sessions', 1)}" if rank == 0 else self._ask()
        self.store = dist.PrefixStore(self._name, self._root)

    def _ask(self) -> str:
        number = self._root.add("questions", 1)
        while not self._root.check([f"answer/{number}"]):
            time.sleep(_PULSE_S)
        return self._root.get(f"answer/{number}").decode()

    def _answer(self) -> None:
        for number in range(self._answered + 1, self._root.add("questions", 0) + 1):
            self._root.set(f"answer/{number}", self._name)
            self._answered = number

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """Shows the leader that this process lives, while the block runs."""
        stop = threading.Event()

        def beat() -> None:
            try:
                while not stop.wait(_PULSE_S):
                    self.store.add(f"beats/{self._rank}", 1)
                    if self._rank == 0:
                        self._answer()
            except RuntimeError:  # the store is gone; the next question to it says so
                return

        thread = threading.Thread(target=beat, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def beats(self, rank: int) -> int:
        """How often a process has shown itself."""
        return self.store.add(f"beats/{rank}", 0)


class Silence:
    """Tells which processes have not shown themselves for too long.

    Args:
        beats: how often a process has shown itself so far.
        limit_s: what is too long.
        clock: seconds.
    """

    def __init__(
        self,
        beats: Callable[[int], int],
        limit_s: float = _SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beats = beats
        self._limit_s = limit_s
        self._clock = clock
        self._last: dict[int, tuple[int, float]] = {}

    def __call__(self, rank: int) -> str | None:
        """Why a process counts as lost, or None."""
        beats, now = self._beats(rank), self._clock()
        before = self._last.get(rank)
        if before is None or before[0] != beats:
            self._last[rank] = beats, now
            return None
        silent_s = now - before[1]
        return f"gave no sign of life for {silent_s:.0f} s" if silent_s > self._limit_s else None
