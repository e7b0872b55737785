"""What every command does with errors: one line, and the exit code that the cause deserves."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from geopose.cli import run_command
from geopose.convert import main as convert
from geopose.evaluation import main as evaluate
from geopose.inference.submission.command import submit
from tests.programs import ROOT


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, 2), (errno.EROFS, 2), (errno.EPERM, 2), (errno.ENOTDIR, 2),
        (errno.ENOENT, 2), (errno.EISDIR, 2), (errno.ENOSPC, 1), (errno.EIO, 1),
    ],
)  # fmt: skip
def test_an_error_of_the_system_names_the_file(
    capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def fail(argv: Sequence[str] | None) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    assert run_command(fail, []) == code
    assert one_error(capsys) == f"error: {os.strerror(number)}: some/file\n"


def test_an_error_of_the_system_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: Sequence[str] | None) -> None:
        raise OSError("two\nlines")

    assert run_command(fail, []) == 1
    assert one_error(capsys) == "error: two lines\n"


def test_names_that_no_file_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a" * 300
    commands = (
        (submit, [name]), (convert, ["--data-dir", name]), (evaluate, [name, name]),
    )  # fmt: skip
    for command, arguments in commands:
        assert run_command(command, arguments) == 2
        assert name in one_error(capsys)


def test_under_a_launcher_nothing_can_abort_a_program_that_has_ended() -> None:
    program = (
        "import atexit, os\n"
        "from geopose.cli import leave\n"
        "atexit.register(os.abort)\n"  # as a thread of a process group may
        "print('what was said', end='')\n"
        "leave(7)\n"
    )
    env = {**os.environ, "RANK": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (7, b"what was said")
