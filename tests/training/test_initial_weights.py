"""What a training starts from: the network in the package, and a word where its images differ."""

from pathlib import Path

import pytest
import torch

from geopose.checkpoints.load import load_model
from geopose.checkpoints.remote.fetch import Source, fetch
from geopose.errors import InputError
from tests.training_run import train, weights


def test_a_training_can_start_from_the_demo(
    sample_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = ("model.encoder.name=test_resnet", "checkpoint=demo")
    still = ("train.epochs=1", "optimizer.lr=1e-12", "scheduler=disabled")
    run = train(sample_dir, tmp_path / "run", *own, "train.downsample=2", *still)
    assert "trained with" not in caplog.text
    got = weights(run / "checkpoints_mean_r2" / "last.pth")
    wanted = load_model(fetch(Source("demo"))).model.state_dict()
    for name, tensor in got.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=0)
    train(sample_dir, tmp_path / "other", *own, *still)
    assert "demo.pth: trained with train.downsample=2 (here 1); give the same" in caplog.text


def test_weights_of_another_network_are_refused_with_its_name(
    sample_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"with \(sample_unet\), or transfer=FILE"):
        train(sample_dir, tmp_path / "run", "model=mobilenet_unet", "checkpoint=demo")
