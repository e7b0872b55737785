"""What is imported leaves nothing in the home folder but the cache, and makes none named `~`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from geopose.system import home
from tests.tiny_run import ENVIRONMENT

PROGRAM = """
import geopose.training.fit, sys
found = sorted(sys.modules)
import geopose.inference.submission.job, geopose.evaluation
import geopose.checkpoints.export, geopose.checkpoints.formats.onnx_file
import onnxruntime
onnxruntime.SessionOptions()
print(found)
"""


def run(code: str, cwd: Path, **env: str) -> str:
    clean = {k: v for k, v in ENVIRONMENT.items() if not k.startswith(("XDG_", "MPL", "HOME"))}
    clean.pop("GEOPOSE_CACHE", None)
    clean.pop("TORCH_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_brings_in_nothing_else_and_an_empty_home_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    found = run(PROGRAM, tmp_path / "work", HOME=str(tmp_path / "home"))
    assert not [name for name in ("onnxruntime", "mlflow", "wandb") if f"'{name}'" in found]
    assert "'catalyst'" in found
    cache = tmp_path / "home/.cache/torch/hub/checkpoints"
    left = [path for path in tmp_path.rglob("*") if path.is_file() and cache not in path.parents]
    assert left == []


def test_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(home.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("HOME", raising=False)
    home.ensure_home()
    assert os.environ["HOME"] == str(tmp_path / f"geopose-{os.getuid()}")
    assert Path(os.environ["HOME"]).stat().st_mode & 0o077 == 0
    home.ensure_home()
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    (tmp_path / "geopose-54321").symlink_to("/")
    monkeypatch.setattr(home.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "own"))
    home.ensure_home()
    assert os.environ["HOME"] == str(tmp_path / "own")
