"""Standard streams that are no terminal, closed, or read by nobody."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from geopose.system import progress
from tests.tiny_run import ENVIRONMENT, ROOT, write_checkpoint


def test_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress.progress_bar(total=1000, desc="work", unit="image")
    for _ in range(1000):
        clock[0] += 0.1
        bar.update()
        bar.set_postfix_str("loss 1")
        bar.refresh()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("work:") for line in lines)
    assert "30%" in lines[0]


def test_iterations_are_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress_bar(range(5))) == [0, 1, 2, 3, 4]
    with progress.progress_bar(total=3, disable=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    list(progress.progress_bar(range(5)))
    assert "\r" in screen.getvalue()


COMMANDS = [  # each way to read arguments and to write; test_configs cuts train.py's help short
    ("train.py --help", ">&- 2>&-"),
    ("train.py no=such", ">&-"),
    ("submit.py --help", "| true"),
    ("-m geopose.checkpoints info FILE", ">&-"),
]


@pytest.mark.parametrize(("command", "way"), COMMANDS)
def test_closed_streams_end_quietly(tmp_path: Path, command: str, way: str) -> None:
    write_checkpoint(tmp_path / "a.pth")
    line = f"{sys.executable} {command.replace('FILE', str(tmp_path / 'a.pth'))} {way}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    for word in ("Traceback", "Exception", "pipe"):
        assert word not in done.stderr, done.stderr
