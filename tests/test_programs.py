"""Forked commands end, speak and die as those of a new interpreter do."""

import multiprocessing
import signal
from pathlib import Path

import pytest

from tests.programs import LOADED
from tests.tiny_run import ENVIRONMENT, run_script

METHOD = multiprocessing.get_start_method()
PROGRAM = """
import multiprocessing, os, sys

def answer(queue):
    name = multiprocessing.current_process().name
    queue.put((name, sys.argv[1:], os.environ["WORD"], os.getcwd()))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=answer, args=(queue,), name="child")
    child.start()
    print(*queue.get(), multiprocessing.get_start_method())
    child.join()
    print(sorted(set({loaded}) - set(sys.modules)), file=sys.stderr)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('no')", 1, "ValueError: no"),
        (f"os.kill(os.getpid(), {int(signal.SIGTERM)})", -signal.SIGTERM, ""),
        ("", 0, ""),
    ],
)
def test_a_program_is_run(tmp_path: Path, end: str, code: int, said: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(loaded=LOADED, end=end))
    done = run_script(script, "--a", 1, cwd=tmp_path, env={**ENVIRONMENT, "WORD": "hear"})
    assert done.returncode == code
    assert done.stdout == f"child ['--a', '1'] hear {tmp_path} {METHOD}\n"
    assert done.stderr.startswith("[]\n")  # all is loaded
    assert said in done.stderr


@pytest.mark.parametrize(("code", "returned"), [("pass", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_code_is_run(tmp_path: Path, code: str, returned: int) -> None:
    said = "import sys\ndef words(): return sys.argv\nprint(__name__, words(), sys.path[0] == '')\n"
    done = run_script("-c", said + code, "a", cwd=tmp_path)
    assert done.returncode == returned
    assert done.stdout == "__main__ ['-c', 'a'] True\n"
    assert ("ZeroDivisionError" in done.stderr) == (code == "1 / 0")
