"""One writer per folder for every command; leftovers of the dead go, those of the living stay."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from geopose.checkpoints.__main__ import main as checkpoints
from geopose.convert import convert_directory
from geopose.errors import InputError
from geopose.files.atomic import atomic_path, partial_files
from geopose.files.lock import FolderLock
from geopose.sample_city.writer import write_dataset
from tests.tiny_data import write_data_dir
from tests.tiny_run import ENVIRONMENT, write_checkpoint
from tests.training_run import train

HOLD = (
    "import sys, time; from pathlib import Path; from geopose.files.lock import FolderLock; "
    "lock = FolderLock(Path(sys.argv[1]), 'x', sys.argv[2]); print('held', flush=True); "
    "time.sleep(60)"
)


@pytest.fixture
def holder():
    """Starts processes that hold a folder; they end with the test."""
    started: list[subprocess.Popen] = []

    def hold(folder: Path, name: str = ".lock") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), name],
            env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_sample_city(tmp_path: Path, holder: Callable) -> None:
    process = holder(tmp_path)
    with pytest.raises(InputError, match="another run is writing"):
        write_dataset(tmp_path, 1, 0, 64)
    assert not (tmp_path / "train").exists()
    process.kill()
    process.wait()
    assert write_dataset(tmp_path, 1, 0, 64) > 0  # the lock has died with its process
    assert not (tmp_path / ".lock").exists()


def test_convert(tmp_path: Path, holder: Callable) -> None:
    write_data_dir(tmp_path, ["ABC"])
    process = holder(tmp_path / "train")
    with pytest.raises(InputError, match="another run is writing"):
        convert_directory(tmp_path, 1, progress=False)
    process.kill()
    process.wait()
    assert convert_directory(tmp_path, 1, progress=False).converted == 1
    holder(tmp_path / "train")
    assert convert_directory(tmp_path, 1, progress=False).skipped == 1  # nothing to write


def test_export(tmp_path: Path, holder: Callable) -> None:
    source = write_checkpoint(tmp_path / "a.pth")
    holder(tmp_path, ".b.safetensors.lock")
    with pytest.raises(InputError, match="another run is writing"):
        checkpoints(["export", str(source), str(tmp_path / "b.safetensors")])
    checkpoints(["export", str(source), str(tmp_path / "c.safetensors")])
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["c.safetensors"]


def test_training(sample_dir: Path, tmp_path: Path, holder: Callable) -> None:
    run = tmp_path / "run"
    run.mkdir()
    process = holder(run)
    with pytest.raises(InputError, match=r"experiment: another run is writing to .*run"):
        train(sample_dir, run, "train.epochs=1")
    assert [path.name for path in run.iterdir()] == [".lock"]
    process.kill()
    process.wait()
    train(sample_dir, run, "train.epochs=1")
    assert not (run / ".lock").exists()
    train(sample_dir, run, "train.epochs=2")


def test_a_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As the workers of a loader, which may outlive the process that began them."""
    ready, go = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        FolderLock(tmp_path, "x")
        if os.fork() == 0:
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        os._exit(0)
    os.waitpid(parent, 0)
    os.read(ready[0], 1)
    lock = FolderLock(tmp_path, "x")
    assert [*tmp_path.iterdir()], "taken while the child of the former owner lives"
    lock.give_up()
    os.write(go[1], b"1")


def test_not_even_twice_in_a_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(InputError):
        FolderLock(tmp_path)
    lock.give_up()
    FolderLock(tmp_path).give_up()


def test_partial_files_of_the_living_are_none(tmp_path: Path) -> None:
    code = (
        "import sys, time; from geopose.files.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); print('half', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    with atomic_path(tmp_path / "b.png") as own:
        own.write_text("half")
        (tmp_path / ".old.partial-0123abcd.png").write_text("of a version that told no owner")
        (tmp_path / ".mine.partial-notes.png").write_text("a user's")
        assert [path.name for path in partial_files(tmp_path, ".png")] == [
            ".old.partial-0123abcd.png"
        ]
    process.kill()
    process.wait()
    assert len(partial_files(tmp_path, ".png")) == 2
    assert len(partial_files(tmp_path, ".*")) == 2
    assert partial_files(tmp_path, ".tif") == []
