"""What every command shares: one-line errors, exit codes, logging on standard error."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from geopose.errors import GeoposeError

EXIT_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line on standard error and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program; `message` says what is wrong with the arguments."""
        self.exit(EXIT_INPUT, f"error: {message} (see {self.prog} --help)\n")


def one_line(message: object) -> str:
    """Folds a message that a library spread over several lines into one."""
    return " ".join(str(message).split())


def setup_logging(level: int = logging.INFO) -> None:
    """Plain log lines on standard error; called once by a command, never by the library."""
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> int:
    """Runs a command's main function and turns its outcome into an exit code.

    Args:
        main: takes the argument list (None = sys.argv), returns nothing, raises GeoposeError.
        argv: arguments without the program's name.

    Returns:
        0, or the exit code of the GeoposeError (2 bad input, 1 failed run), 130 if interrupted.
    """
    setup_logging()
    try:
        main(argv)
    except GeoposeError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return EXIT_INTERRUPTED
    return 0
