"""submit_ddp.py: however the processes are started, the result is that of one process."""

import re
import signal
from pathlib import Path

import pytest

from geopose.cli import run_command
from geopose.inference.submission.command import submit, submit_ddp
from tests.tiny_run import (
    ENVIRONMENT,
    SIZES,
    run_interpreter,
    run_script,
    write_checkpoint,
    write_config,
    write_split,
)


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

    done = run_interpreter("submit_ddp.py", *arguments, "--nproc", 2, f"submission_dir={tmp_path}")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "submission_compressed.tar.gz").read_bytes() == expected
    assert len(list((tmp_path / "submission").iterdir())) == 2 * len(SIZES)
    assert "2 processes" in done.stderr


def test_without_gpus_and_nproc_it_is_one_process(setup, tmp_path, monkeypatch):
    _, arguments, expected = setup
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)

    assert run_command(submit_ddp, [*arguments, f"submission_dir={tmp_path}"]) == 0

    assert (tmp_path / "submission_compressed.tar.gz").read_bytes() == expected


def test_a_checkpoint_that_does_not_fit_is_one_line(setup, tmp_path):
    _, arguments, _ = setup
    (tmp_path / "bad.pth").write_bytes(b"garbage")
    more = [f"submission_dir={tmp_path}/out", f"ensemble.models=[{tmp_path}/bad.pth]"]

    done = run_script("submit_ddp.py", *arguments, "--nproc", 2, *more)

    assert done.returncode == 2
    *_, said = done.stderr.splitlines()
    assert said.startswith(f"error: {tmp_path}/bad.pth")
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "-1"])
def test_impossible_numbers_of_processes(setup, capsys, number):
    assert run_command(submit_ddp, [*setup[1], "--nproc", number]) == 2
    assert "--nproc" in capsys.readouterr().err


def test_more_processes_than_gpus(setup, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert run_command(submit_ddp, [*setup[1], "--nproc", "3"]) == 2
    assert "2 GPUs are visible" in capsys.readouterr().err


# The command, in whose second process something happens when it predicts, and whose first process
# waits for that to happen. torchrun starts this file, spawning imports it.
_FAULTY = """
import os, signal, sys, time
from pathlib import Path
import torch
from geopose.cli import run_command
from geopose.inference.submission import command
from geopose.inference.predict.ensemble import PoseEnsemble

forward, happened = PoseEnsemble.forward, Path(__file__).with_name("happened")

def predict(*arguments):
    if os.environ.get("RANK") == "1" and not happened.exists():
        happened.touch()
        {fault}
    while not happened.exists():
        time.sleep(0.01)
    return forward(*arguments)

PoseEnsemble.forward = predict

if __name__ == "__main__":
    sys.exit(run_command(command.submit_ddp))
"""
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def faulty(folder: Path, fault: str) -> Path:
    """The command with a fault in it."""
    script = folder / "faulty.py"
    script.write_text(_FAULTY.format(fault=fault))
    return script


def test_too_little_memory_in_another_process_is_said(setup, tmp_path):
    _, arguments, _ = setup
    script = faulty(tmp_path, "raise torch.OutOfMemoryError('no memory')")

    done = run_script(script, *arguments, f"submission_dir={tmp_path}/out", "--nproc", 2)

    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: process 1 stopped: out of memory on cpu")
    assert "inference.precision=bf16" in said[0]
    assert "of 5 images are missing" in said[0]
    assert "terminate called" not in done.stderr
    assert not (tmp_path / "out/submission_compressed.tar.gz").exists()


def test_the_others_do_all_that_a_killed_process_has_not_begun(setup, tmp_path, caplog):
    """Then it is said what is missing, and a rerun, by one process, does only that."""
    _, arguments, expected = setup
    more = [f"submission_dir={tmp_path}/out"]
    script = faulty(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")

    done = run_script(script, *arguments, *more, "--nproc", 2)

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    said = re.match(
        r"error: process 1 was killed by SIGKILL; (\d) of 5 images are missing, no archive "
        r"written: (.*); run again to do only these$",
        last,
    )
    assert said, done.stderr
    files = {path.name for path in (tmp_path / "out/submission").iterdir()}
    missing = {name.removesuffix("_RGB.j2k") for name in said[2].split("; ")}
    assert len(missing) == int(said[1]) < 3
    assert files == {
        f"ABC_{number:03d}_{kind}"
        for number in range(len(SIZES))
        for kind in ("AGL.tif", "VFLOW.json")
        if f"ABC_{number:03d}" not in missing
    }
    with caplog.at_level("INFO"):
        assert run_command(submit, [*arguments, *more]) == 0
    assert f"{5 - len(missing)} of 5 images are finished and kept" in caplog.text
    assert (tmp_path / "out/submission_compressed.tar.gz").read_bytes() == expected


def test_torchrun_restarts_what_was_killed_and_the_run_goes_on(setup, tmp_path):
    _, arguments, expected = setup
    script = faulty(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    more = [f"submission_dir={tmp_path}/out"]

    done = run_script(*_TORCHRUN, "--max-restarts=1", script, *arguments, *more)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/submission_compressed.tar.gz").read_bytes() == expected


def processes_of(mark: str) -> list[int]:
    """Processes with this text in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_signal_to_the_command_ends_all_processes(setup, tmp_path):
    _, arguments, _ = setup
    script = faulty(tmp_path, "os.kill(os.getppid(), signal.SIGTERM); signal.pause()")
    mark = f"GEOPOSE_TEST_MARK={tmp_path}"
    environment = {**ENVIRONMENT, "GEOPOSE_TEST_MARK": str(tmp_path)}

    done = run_script(
        script, *arguments, f"submission_dir={tmp_path}/out", "--nproc", 2, env=environment
    )

    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert "run again to go on" in done.stderr
    assert processes_of(mark) == []
    assert not list((tmp_path / "out").rglob(".*"))
    assert not (tmp_path / "out/submission_compressed.tar.gz").exists()


def test_a_folder_that_cannot_be_made_is_one_line(setup):
    done = run_script("submit_ddp.py", *setup[1], "--nproc", 2, "submission_dir=/dev/null/x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: submission_dir: cannot write to /dev/null/x")
    assert done.stderr.count("\n") == 1
