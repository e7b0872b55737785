"""The commands of the published README, as they stand, on a small data set."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from geopose.cli import run_command
from geopose.inference.config import load_config
from geopose.inference.submission.command import submit, submit_ddp
from tests.tiny_data import write_data_dir
from tests.tiny_run import ENVIRONMENT, ROOT, model_config, payload_of, run_script, write_split

VARIABLE = "DRIVENDATA_OVERHEAD_GEOPOSE"
SHIPPED = sorted(path.name for path in (ROOT / "configs/inference").glob("fp32_*.yaml"))
TRAININGS = (
    "python -m torch.distributed.launch --nproc_per_node=2 train.py model=b6_rdtsc_unet "
    "optimizer=adamw_fp32 scheduler=plateau loss=huber_cos train=light_768 train.epochs=300 "
    "train.early_stopping=50 train.show=False train.loaders.train.num_workers=8 batch_size=3 "
    "dataset.fold=9 seed=777",
    "python -m torch.distributed.launch --nproc_per_node=2 train.py model=b7_unet optimizer=adamw "
    "scheduler=cos loss=huber_cos train=light_768 train.epochs=250 train.show=False "
    "train.loaders.train.num_workers=10 batch_size=4 dataset.fold=0 seed=555",
)
# What a CPU cannot do in a test: many epochs of 768 px crops by a B6 or B7 encoder and a decoder as
# wide, whose checkpoints are of a gigabyte, and 20 workers.
SMALLER = (
    "train.epochs=1 train.crop_size=64 train.loaders.train.num_workers=0 "
    "model.encoder._target_=pytorch_toolbelt.modules.encoders.TimmB0Encoder "
    "model.decoder.channels="
)


def shell(line: str, folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """Runs a line in a folder that has what the repository has, and keeps what it writes."""
    for name in ("configs", *(path.name for path in ROOT.glob("*.py"))):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    python, *words = shlex.split(line)
    assert python == "python"
    env = {**ENVIRONMENT, **{name: str(value) for name, value in variables.items()}}
    return run_script(*words, cwd=folder, env=env)


@pytest.mark.parametrize("by_variable", [True, False])
def test_images_are_converted(tmp_path: Path, by_variable: bool) -> None:
    data = write_data_dir(tmp_path / "data", ["ABC", "ABC"])
    line = "python convert_j2k.py" + ("" if by_variable else f' --data_dir="{data}"')
    done = shell(line, tmp_path, **({VARIABLE: data} if by_variable else {}))
    assert done.returncode == 0, done.stderr
    assert len(list((data / "train").glob("*_RGB.png"))) == 2


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_ensembles_predict(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    data = write_split(tmp_path / "data", [(64, 64)])
    (tmp_path / "cache").mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    inner = {"activation": "silu", **model_config()}
    del inner["channel_order"], inner["agl_head"]["embedding_size"]
    payload = payload_of({"_target_": inner.pop("_target_"), "config": inner})
    torch.save(payload, tmp_path / "small.pth")
    config = f"configs/inference/{name}"
    for entry in load_config(ROOT / config).models:
        os.link(tmp_path / "small.pth", entry.files[0])
    monkeypatch.chdir(tmp_path)
    archives = []
    monkeypatch.delenv(VARIABLE, raising=False)
    for command, arguments in ((submit, ["--data-dir", str(data)]), (submit_ddp, [])):
        assert run_command(command, [config, *arguments]) == 0
        monkeypatch.setenv(VARIABLE, str(data))
        (archive,) = (tmp_path / "submissions").rglob("submission_compressed.tar.gz")
        archives.append(archive.read_bytes())
        (tmp_path / "submissions").rename(tmp_path / command.__name__)
    assert archives[0] == archives[1]


@pytest.mark.parametrize(
    ("line", "channels"),
    zip(TRAININGS, ("[16,24,32]", "[12,16,24,32]"), strict=True),
    ids=["b6", "b7"],
)
def test_the_published_trainings_run(tmp_path: Path, line: str, channels: str) -> None:
    data = write_data_dir(tmp_path / "data", ["ABC", "DEF"] * 10)
    done = shell(f"{line} {SMALLER}{channels}", tmp_path, **{VARIABLE: data})
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "runs").iterdir()
    slug, fold = re.findall(r"model=(\w+).*dataset\.fold=(\d)", line)[0]
    assert re.fullmatch(rf"\d{{6}}_\d\d_\d\d_{slug}_fold{fold}", run.name)
    assert (run / "checkpoints_mean_r2/best.pth").is_file()


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("train_b6_rdtsc_unet_fold9.sh", TRAININGS[0]),
        ("train_b7_unet_fold0.sh", TRAININGS[1]),
    ],
)
def test_the_scripts_say_the_published_trainings(tmp_path: Path, script: str, line: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / script, "train.fast=true"], cwd=tmp_path, capture_output=True,
        env={**ENVIRONMENT, "DRY_RUN": "1", "NPROC": "2"}, text=True, check=True,
    )  # fmt: skip
    said = done.stdout.split()
    assert set(line.split("train.py ")[1].split()) <= set(said)
    assert {"--nproc_per_node=2", "optimizer.accumulation=1", "optimizer.lr=0.0001"} <= set(said)
    assert said[-1] == "train.fast=true"
