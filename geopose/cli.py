"""What every command shares: one-line errors, exit codes, logging on standard error."""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from geopose.errors import GeoposeError, Stopped, one_line, printable

EXIT_RUN = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
# What the system says to a path that the user has to change; anything else broke the run.
_BAD_PATH = {
    errno.ENAMETOOLONG, errno.EACCES, errno.ENOTDIR, errno.EROFS, errno.EISDIR, errno.ENOENT,
    errno.EPERM,
}  # fmt: skip


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line on standard error and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program; `message` says what is wrong with the arguments."""
        self.exit(EXIT_INPUT, f"error: {one_line(message)} (see {self.prog} --help)\n")


def positive_int(text: str) -> int:
    """Argument type: a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


class _Plain(logging.Formatter):
    """Names out of files cannot steer the terminal that a message is read on."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, as it may be shown."""
        return printable(super().format(record))


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def setup_logging() -> None:
    """Plain log lines on standard error; called once by a command, never by the library.

    Of several processes under a launcher only the first one talks, errors apart.
    """
    level = logging.INFO if _is_first_process() else logging.ERROR
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> int:
    """Runs a command's main function and turns its outcome into an exit code.

    Args:
        main: takes the argument list (None = sys.argv), returns nothing, raises GeoposeError.
        argv: arguments without the program's name.

    Returns:
        0, or the exit code of the GeoposeError (2 bad input, 1 failed run), 130 if interrupted,
        128 + the signal's number if a signal ended the run in good order.
        An error of the system that nobody foresaw is one line too: 2 if it is about a path that
        cannot be used, otherwise 1.
    """
    open_streams()
    setup_logging()
    try:
        return _outcome(main, argv)
    finally:
        flush_streams()


def open_streams() -> None:
    """Opens the null device in place of standard streams that the caller has closed (`>&-`).

    Else the next file that is opened takes their number, and what is meant for the user goes in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def flush_streams() -> None:
    """Writes what is waiting; where nobody reads any more (`| head`), it is dropped.

    The interpreter would complain at its end about what it could not write.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{text}\n")


def _outcome(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    try:
        main(argv)
    except BrokenPipeError:  # who read has had enough
        return 0
    except Stopped as stop:
        if _is_first_process():
            _say(one_line(stop))
        return stop.exit_code
    except GeoposeError as error:
        if _is_first_process() or not error.on_every_rank:
            _say(f"error: {one_line(error)}")
        return error.exit_code
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _say(f"error: {one_line(error.strerror or error)}{one_line(where) if where else ''}")
        return EXIT_INPUT if error.errno in _BAD_PATH else EXIT_RUN
    except KeyboardInterrupt:
        _say("error: interrupted")
        return EXIT_INTERRUPTED
    return 0


def leave(code: int) -> NoReturn:
    """Ends the program with an exit code.

    Under a launcher it ends without taking the interpreter apart: a thread of the process group
    that still has a tensor to release needs the interpreter for it, and aborts the process if it
    comes too late, which would make a failure of a finished run.
    """
    if "RANK" not in os.environ:
        flush_streams()
        sys.exit(code)
    logging.shutdown()
    flush_streams()
    os._exit(code)
