"""A last.pth from elsewhere: refused in one line before anything is written, and nothing outside of
the run directory is touched."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from geopose.errors import InputError
from geopose.training.resume.run_files import rewind
from tests.training_run import train

FOLDER = "checkpoints_mean_r2"
ARGUMENTS = ("train.ema=0.9", "optimizer=sample", "optimizer.precision=fp32", "runner.top_k=1")
Payload = dict[str, Any]


@pytest.fixture(scope="module")
def finished(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(sample_dir, folder, *ARGUMENTS, "train.epochs=1")
    return folder


def state_of(payload: Payload, number: int = 0) -> Payload:
    return payload["optimizer_state_dict"]["state"][number]


def largest(payload: Payload) -> int:
    states = payload["optimizer_state_dict"]["state"]
    return max(states, key=lambda number: states[number]["exp_avg"].numel())


def shorter(payload: Payload) -> None:
    state_of(payload, largest(payload))["exp_avg_sq"] = torch.zeros(1, 1)


def endless(payload: Payload) -> None:
    state_of(payload)["exp_avg"] = torch.zeros(1).expand(10**12)


def sparse(payload: Payload) -> None:
    own = state_of(payload)["exp_avg"]
    state_of(payload)["exp_avg"] = torch.zeros(own.shape).to_sparse()


def whole_numbers(payload: Payload) -> None:
    own = state_of(payload)["exp_avg"]
    state_of(payload)["exp_avg"] = torch.zeros(own.shape, dtype=torch.int64)


def kept_elsewhere(payload: Payload) -> None:
    payload["resume"]["callbacks"][FOLDER]["kept"] = [[0.0, "../../precious.pth"]]


def folder_elsewhere(payload: Payload) -> None:
    payload["checkpoint_data"]["config"]["runner"]["checkpoints"][1]["name"] = "../../../evil"


def files_elsewhere(payload: Payload) -> None:
    payload["resume"]["files"]["../precious.pth"] = 0


def buffer_shape(payload: Payload) -> None:
    payload["resume"]["ranks"] = [{"buffers": [{"a": torch.zeros(3)}, {}]}]


def schedule_code(payload: Payload) -> None:
    payload["scheduler_state_dict"]["optimizer"] = {"a": 1}


def lambdas(payload: Payload) -> None:
    payload["scheduler_state_dict"]["lr_lambdas"] = [{"__class__": 1}]


def ema_shape(payload: Payload) -> None:
    weights = payload["ema_state_dict"]
    weights[next(iter(weights))] = torch.zeros(2)


def set_in(*keys: Any, value: Any) -> Callable[[Payload], None]:
    def change(payload: Payload) -> None:
        for key in keys[:-1]:
            payload = payload[key]
        payload[keys[-1]] = value

    return change


CHANGES = {
    "state too short": shorter,
    "endless state": endless,
    "sparse state": sparse,
    "state of whole numbers": whole_numbers,
    "kept elsewhere": kept_elsewhere,
    "folder elsewhere": folder_elsewhere,
    "files elsewhere": files_elsewhere,
    "buffers of another model": buffer_shape,
    "attributes of the schedule": schedule_code,
    "attributes of its functions": lambdas,
    "average of another shape": ema_shape,
    "no average": set_in("ema_state_dict", value=None),
    "no groups": set_in("optimizer_state_dict", "param_groups", value=[]),
    "groups that are none": set_in("optimizer_state_dict", "param_groups", 0, value=[1]),
    "state of nobody": set_in("optimizer_state_dict", "state", 10**6, value={}),
    "state by text": set_in("optimizer_state_dict", "state", "a", value={}),
    "half a state": set_in("optimizer_state_dict", "state", 0, value={"step": torch.tensor(1.0)}),
    "count of nothing": set_in(
        "optimizer_state_dict", "state", 0, "step", value=torch.tensor(math.nan)
    ),
    "rate of nothing": set_in("optimizer_state_dict", "param_groups", 0, "lr", value=math.nan),
    "settings": set_in("optimizer_state_dict", "param_groups", 0, "betas", value=(1.0, 1.0)),
    "epoch": set_in("resume", "epoch", value="1"),
    "batch": set_in("resume", "batch", value=-1),
    "updates": set_in("resume", "updates", value=10**400),
    "processes": set_in("resume", "processes", value=None),
    "ranks": set_in("resume", "ranks", value=[]),
    "rows": set_in("resume", "callbacks", "metrics_file", "rows", value=[1]),
    "unknown callback": set_in("resume", "callbacks", "evil", value={}),
    "metrics": set_in("metrics", value={"train": {"loss": "high"}}),
    "versions": set_in("versions", value=3),
    "checksum": set_in("data_checksum", value="x"),
    "no training": set_in("checkpoint_data", "config", "train", value=None),
    "position that is none": set_in("resume", value=7),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refused_before_anything_is_written(
    finished: Path, sample_dir: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "runs" / "run"
    shutil.copytree(finished, run)
    precious = tmp_path / "runs" / "precious.pth"
    precious.write_bytes(b"precious")
    (run / FOLDER / "previous.pth").unlink(missing_ok=True)
    last = run / FOLDER / "last.pth"
    payload = torch.load(last, weights_only=False)
    CHANGES[name](payload)
    torch.save(payload, last)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"last\.pth") as caught:
        train(sample_dir, run, *ARGUMENTS, "train.epochs=2")
    assert "\n" not in str(caught.value)
    assert precious.read_bytes() == b"precious"
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after


def test_strides_of_the_file_are_not_kept(finished: Path, sample_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    last = run / FOLDER / "last.pth"
    payload = torch.load(last, weights_only=False)
    entry = state_of(payload, largest(payload))
    value = entry["exp_avg"][:1, :1, :1, :1]
    entry["exp_avg"] = value.as_strided(value.shape, (2**40, 2**40, 2**40, 2**40)).expand_as(
        entry["exp_avg"]
    )
    torch.save(payload, last)
    train(sample_dir, run, *ARGUMENTS, "train.epochs=2")
    again = torch.load(last, weights_only=False)
    assert state_of(again, largest(again))["exp_avg"].stride() != entry["exp_avg"].stride()


def test_links_are_not_cut(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "skipped_steps.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"skipped_steps\.csv: is a link"):
        rewind(tmp_path / "run", {"skipped_steps.csv": 0})
    assert (tmp_path / "precious").read_bytes() == b"precious"
