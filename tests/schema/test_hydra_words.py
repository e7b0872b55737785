"""What Hydra has to say is one line that names the key; a sweep leaves nothing behind."""

import os
import subprocess
from pathlib import Path

import pytest

from geopose.errors import InputError
from geopose.schema.hydra_words import options_first
from tests.tiny_run import ROOT, run_script


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script(ROOT / "train.py", *arguments, cwd=cwd)


WRONG = {
    "loss=a=b": "loss=a=b",
    "seed=[[[": r"quotes",
    "modle=b7_unet": "modle",
    "train.epoch=3": "train.epoch",
    "model=nosuch": "model/nosuch",
    "--foo": "--foo",
    "seed": "seed: ",
    "seed=${nosuch}": "nosuch",
    "train.loss=a #b": "train.loss",
}


@pytest.mark.parametrize("argument", WRONG)
def test_one_line(tmp_path: Path, argument: str) -> None:
    done = run(tmp_path, argument)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert WRONG[argument] in line
    assert len(line) < 500


def test_options_may_stand_anywhere() -> None:
    given = ["seed=1,2", "-m", "a=b", "--config-dir", "x"]
    assert options_first(given) == ["-m", "--config-dir", "x", "seed=1,2", "a=b"]
    with pytest.raises(InputError, match="--foo"):
        options_first(["--foo"])
    with pytest.raises(InputError, match="expected one argument"):
        options_first(["--config-dir"])


def test_a_sweep_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "+nosuch=1", "seed=1,2", "-m")
    assert done.returncode == 2
    assert done.stderr.count("unknown key nosuch") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_sweep_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = run(tmp_path, "train.epochs=0", "seed=1,2", "-m")
    assert "multirun" not in done.stderr
    tmp_path.chmod(0o755)
