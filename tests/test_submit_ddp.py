"""submit_ddp.py: however the processes are started, the result is that of one process."""

import sys
from pathlib import Path

import pytest

from geopose.cli import run_command
from geopose.inference.command import submit, submit_ddp
from tests.tiny_run import SIZES, run_script, write_checkpoint, write_config, write_split


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Data, a checkpoint, a config, and the archive that one process makes of them."""
    folder = tmp_path_factory.mktemp("setup")
    write_split(folder / "data")
    write_checkpoint(folder / "a.pth", seed=1)
    config = write_config(folder / "c.yaml", [folder / "a.pth"], num_workers=1)
    arguments = [str(config), "--data-dir", str(folder / "data")]
    assert run_command(submit, [*arguments, f"submission_dir={folder}/one"]) == 0
    return folder, arguments, (folder / "one/submission_compressed.tar.gz").read_bytes()


def test_two_processes_make_the_same_archive(setup, tmp_path):
    _, arguments, expected = setup

    done = run_script("submit_ddp.py", *arguments, "--nproc", 2, f"submission_dir={tmp_path}")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "submission_compressed.tar.gz").read_bytes() == expected
    assert len(list((tmp_path / "submission").iterdir())) == 2 * len(SIZES)
    assert "2 processes" in done.stderr


def test_inside_torchrun(setup, tmp_path):
    _, arguments, expected = setup
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    done = run_script(*launcher[1:], "submit_ddp.py", *arguments, f"submission_dir={tmp_path}")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "submission_compressed.tar.gz").read_bytes() == expected


def test_without_gpus_and_nproc_it_is_one_process(setup, tmp_path, monkeypatch):
    _, arguments, expected = setup
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)

    assert run_command(submit_ddp, [*arguments, f"submission_dir={tmp_path}"]) == 0

    assert (tmp_path / "submission_compressed.tar.gz").read_bytes() == expected


def test_an_image_that_fails_in_another_process_fails_the_run(setup, tmp_path):
    _, arguments, _ = setup
    data = write_split(tmp_path / "data")
    (data / "test/ABC_001_RGB.j2k").write_bytes(b"garbage")  # the second process's first

    done = run_script(
        "submit_ddp.py", arguments[0], "--data-dir", data, "--nproc", 2,
        f"submission_dir={tmp_path}/out",
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 1 of 5 images failed")
    assert "ABC_001_RGB.j2k" in last
    assert not (tmp_path / "out/submission_compressed.tar.gz").exists()
    assert len(list((tmp_path / "out/submission").iterdir())) == 2 * (len(SIZES) - 1)


def test_a_checkpoint_that_does_not_fit_is_one_line(setup, tmp_path, capsys):
    _, arguments, _ = setup
    (tmp_path / "bad.pth").write_bytes(b"garbage")
    more = [f"submission_dir={tmp_path}/out", f"ensemble.models=[{tmp_path}/bad.pth]"]

    assert run_command(submit_ddp, [*arguments, "--nproc", "2", *more]) == 2

    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "-1"])
def test_impossible_numbers_of_processes(setup, capsys, number):
    assert run_command(submit_ddp, [*setup[1], "--nproc", number]) == 2
    assert "--nproc" in capsys.readouterr().err


def test_more_processes_than_gpus(setup, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert run_command(submit_ddp, [*setup[1], "--nproc", "3"]) == 2
    assert "2 GPUs are visible" in capsys.readouterr().err


# The command, whose second process lacks memory: torchrun starts this file, spawning imports it.
_SHORT_OF_MEMORY = """
import os, sys
import torch
from geopose.cli import run_command
from geopose.inference import command, run

def full(*_):
    raise torch.OutOfMemoryError("no memory")

if os.environ.get("RANK") == "1":
    run.build_ensemble = lambda *_: full

if __name__ == "__main__":
    sys.exit(run_command(command.submit_ddp))
"""


@pytest.mark.parametrize("way", ["spawn", "torchrun"])
def test_too_little_memory_in_another_process_is_said(setup, tmp_path, way):
    _, arguments, _ = setup
    script: Path = tmp_path / "short.py"
    script.write_text(_SHORT_OF_MEMORY)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    more = [f"submission_dir={tmp_path}/out"]

    if way == "spawn":
        done = run_script(script, *arguments, *more, "--nproc", 2)
    else:
        done = run_script(*launcher, script, *arguments, *more)

    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: process 1 stopped: out of memory on cpu")
    assert "inference.batch_size=1" in said[0]
    assert "1 of 5 images are missing" in said[0]
    assert "terminate called" not in done.stderr
    assert not (tmp_path / "out/submission_compressed.tar.gz").exists()


def test_a_folder_that_cannot_be_made_is_one_line(setup):
    done = run_script("submit_ddp.py", *setup[1], "--nproc", 2, "submission_dir=/dev/null/x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: submission_dir: cannot write to /dev/null/x")
    assert done.stderr.count("\n") == 1
