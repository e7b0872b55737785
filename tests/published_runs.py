"""Runs of published files by both commands, compared with the network called by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from geopose import keys
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.inference.submission.command import submit
from geopose.models.normalization import normalize_image
from tests.tiny_run import run_script, write_config

NOTHING = {"checkpoint": None, "transfer_encoder_decoder": None, "transfer": None}


def assert_predicted(folder: Path, data: Path, model: Path) -> None:
    """Compares a run's files with the network of a file, called by hand on BGR planes."""
    rgb = read_rgb(data / "test/ABC_000_RGB.png")
    loaded = load_model(model)
    assert loaded.channel_order == "bgr"
    with torch.inference_mode():
        output = loaded.model(normalize_image(rgb, "bgr")[None], torch.tensor([[0.3]]))
    agl_m = read_agl_m(folder / "submission/ABC_000_AGL.tif")
    assert agl_m.std() > 0.02  # a flat map would prove nothing
    np.testing.assert_allclose(agl_m, output[keys.OUTPUT_AGL_MASK][0, 0].numpy(), atol=0.0051)
    scale = read_vflow(folder / "submission/ABC_000_VFLOW.json")[0]
    assert scale == pytest.approx(output[keys.OUTPUT_VFLOW_SCALE].item(), rel=1e-4)


def assert_both_commands(model: Path, data: Path, folder: Path) -> None:
    """submit.py here and submit_ddp.py by two processes: the same archive, and the right one."""
    config = write_config(folder / "c.yaml", [model])
    arguments = [str(config), "--data-dir", str(data)]
    assert run_command(submit, [*arguments, f"submission_dir={folder}/one"]) == 0
    done = run_script("submit_ddp.py", *arguments, "--nproc", 2, f"submission_dir={folder}/two")
    assert done.returncode == 0, done.stderr
    archives = [(folder / n / "submission_compressed.tar.gz").read_bytes() for n in ("one", "two")]
    assert archives[0] == archives[1]
    assert_predicted(folder / "one", data, model)
