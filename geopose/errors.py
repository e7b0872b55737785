"""The ways in which a command can fail without a bug, each with its exit code, and their words."""

import re

_CREDENTIALS = re.compile(r"(https?://)[^/?#\s]*@", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Text with the user and the password left out of all URLs in it."""
    return _CREDENTIALS.sub(r"\1", text) if "@" in text else text


def printable(text: str) -> str:
    """Text that comes from a file, with what would steer a terminal spelled out (ESC as \\x1b).

    Line breaks stay; a name that is no text (bytes that no encoding explains) is spelled out too.
    """
    text = without_credentials(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def one_line(message: object, longest: int | None = None) -> str:
    """What a library says over several lines, or says nothing, as one line for the user.

    Args:
        message: an error, or anything else with a text; if that is empty, its kind is named.
        longest: characters; what is beyond is cut off and replaced by "...".
    """
    text = printable(" ".join(str(message).split())) or type(message).__name__
    return text if longest is None or len(text) <= longest else f"{text[: longest - 3]}..."


class GeoposeError(Exception):
    """An expected failure. The message is one line: what (file, value), why, and the remedy."""

    exit_code = 1
    on_every_rank = False  # raised by all processes of a run alike: one of them should say it

    def __init__(self, message: object = "") -> None:
        super().__init__(without_credentials(str(message)))


class InputError(GeoposeError):
    """Bad usage or bad input: the user can mend it. Exit code 2."""

    exit_code = 2


class RunError(GeoposeError):
    """A run that started well and could not be finished. Exit code 1."""

    exit_code = 1


class Stopped(GeoposeError):
    """A run that a signal ended on purpose, with everything saved. Exit code 128 + the signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type["Stopped"], tuple[str, int]]:
        return Stopped, (str(self), self.signal_number)


class StorageError(RunError):
    """Values that the challenge's files cannot hold: it concerns one image and none but that."""
