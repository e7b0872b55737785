"""Training runs in forked processes that can be killed at a chosen point, quickly enough for tests.

A fork has the libraries loaded already, so a run of seconds is not preceded by seconds of imports.
"""

import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geopose.cli import run_command
from geopose.training.fit import fit
from tests.training_run import composed


def kill_at_call(owner: Any, name: str, number: int, signal_number: int) -> None:
    """Replaces a method or function by one that sends this process a signal at its n-th call.

    The signal comes before the call does anything.
    """
    original, calls = getattr(owner, name), [0]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal_number)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def run_forked(
    arguments: Sequence[str],
    prepare: Callable[[int], None] = lambda rank: None,
    processes: int = 1,
    log: Path | None = None,
) -> list[int]:
    """Trains as `train.py ARGUMENTS` would; returns every process's exit code (-n: signal n).

    Args:
        arguments: of train.py.
        prepare: called in each process with its rank, to set a trap.
        processes: how many train together.
        log: gets standard error of all.
    """

    cfg = composed(*arguments)  # here, where what other runs have in common is kept

    def work(rank: int) -> int:
        if log is not None:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        logging.getLogger().handlers.clear()  # pytest's; the command sets up its own
        prepare(rank)
        return run_command(lambda _: _discard(fit(cfg, list(arguments))))

    return fork(work, processes)


def fork(work: Callable[[int], int | None], processes: int = 1) -> list[int]:
    """Does work(rank) in as many processes as named, with a launcher's variables if several.

    Returns:
        What it returned (None is 0), 1 after an exception, -n after signal n.
    """
    port, children = _free_port(), []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank)}
                os.environ["LOCAL_RANK"] = str(rank)
            _finish(work, rank)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def _finish(work: Callable[[int], int | None], rank: int) -> None:
    code = 1
    try:
        code = work(rank) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _discard(result: object) -> None:
    del result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
