"""Commands as processes of their own, without the seconds in which an interpreter loads libraries.

A server that has loaded them, and has done nothing else, forks for each command. What a command
starts with a new interpreter (by torchrun, or by multiprocessing) is forked too.
"""

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from multiprocessing import popen_fork
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOADED = [
    "tests.programs",
    "torch.distributed.run",
    "geopose.checkpoints.__main__",
    "geopose.checkpoints.command",
    "geopose.convert",
    "geopose.evaluation",
    "geopose.imagery.command",
    "geopose.inference.submission.command",
    "geopose.inference.submission.job",
    "geopose.training.command",
    "geopose.training.fit",
]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run_forked_program(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` (a file, `-m` and a module, `-c` and code) as subprocess.run would.

    Args:
        arguments: without the interpreter.
        cwd: working directory.
        env: all environment variables.
        timeout_s: it is killed and TimeoutExpired is raised after that.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        work = (list(arguments), str(cwd), dict(env), str(out), str(err))
        process = server.Process(target=_run_with_streams, args=work)
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(arguments), timeout_s, out.read_text())
        return subprocess.CompletedProcess(
            list(arguments), process.exitcode, out.read_text(), err.read_text()
        )


def _server() -> Any:
    """The context of the server, which is started in the root and with tests' environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    here, environment = Path.cwd(), dict(os.environ)
    try:
        os.chdir(ROOT)
        _set_environment(ENVIRONMENT)
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    finally:
        os.chdir(here)
        _set_environment(environment)
    return context


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _run_with_streams(
    arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    multiprocessing.set_start_method(None, force=True)  # a server's children would take to servers
    SpawnProcess._Popen = staticmethod(_forked)  # type: ignore[assignment, method-assign]
    os.chdir(cwd)
    _run(arguments, env)


def _run(arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """What an interpreter does with its arguments; ends with the program's exit code."""
    _set_environment(env)
    sys.path[:0] = env.get("PYTHONPATH", str(ROOT)).split(os.pathsep)
    try:
        if arguments[0] == "-m":
            sys.argv = list(arguments[1:])
            if arguments[1].startswith("torch.distributed."):
                _fork_in_torchrun()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = list(arguments)
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _forget_parent() -> None:
    """Takes back what a new interpreter would not have."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger().handlers.clear()


def _forked(process: BaseProcess) -> popen_fork.Popen:
    """Starts a process that was meant to be spawned."""
    run = process.run

    def fresh() -> None:
        _forget_parent()
        run()

    process.run = fresh  # type: ignore[method-assign]
    return popen_fork.Popen(process)


class _Child:
    """As much of a Popen as torchrun uses."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                _forget_parent()
                _run([word for word in arguments[1:] if word != "-u"], env)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("python", timeout or 0.0)
            time.sleep(0.01)
        return code


def _fork_in_torchrun() -> None:
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.SubprocessHandler._popen = lambda _, args, env: _Child(args, env)  # type: ignore
