"""Heights for Deepness, a plugin of QGIS: run by onnxruntime as the plugin runs a file.

What is said of the plugin here is from its documentation ("Add metadata to model", "Model classes")
and its published source, and not from what this project writes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.inference.predict.ensemble import Member
from tests.tiny_run import tiny_payload


class Plugin:
    """What the plugin does with a file of type Regressor."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        assert len(inputs) == len(outputs) == 1  # more are refused
        assert len(outputs[0].shape) == 4
        assert outputs[0].shape[0] == 1  # "can handle only 1-Batch outputs"
        assert outputs[0].shape[2] == outputs[0].shape[3]  # "only square outputs masks"
        self.name, self.shape = inputs[0].name, inputs[0].shape
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def value(self, key: str) -> Any:
        return json.loads(self.metadata[key])

    def process(self, tile: NDArray[np.uint8], standardizes: bool) -> NDArray[np.floating]:
        """A tile of H x W x channels, RGB; older versions do not standardize."""
        batch = np.float32(tile[None, :, :, : self.shape[-3]] * 1.0 / 255.0)
        if standardizes:
            mean = np.array(self.value("standardization_mean"), dtype=np.float32)
            std = np.array(self.value("standardization_std"), dtype=np.float32)
            batch = (batch - mean) / std
        found = self.session.run(None, {self.name: np.transpose(batch, (0, 3, 1, 2))})
        return found[0][0] * float(self.value("reg_output_scaling"))


KINDS = {  # changes of the model and of its training, and a GSD
    "rgb": ({}, {}, 0.35),
    "bgr, half size, a GSD it does not know": ({"channel_order": "bgr"}, {"downsample": 2}, 2.0),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_plugin_sees_the_heights_that_predictions_have(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes, train, gsd_m = KINDS[kind]
    payload = tiny_payload(3, **changes)
    payload["checkpoint_data"]["config"]["train"].update(train)
    save_checkpoint(tmp_path / "a.pth", {**payload, "gsd_range_m": [0.3, 0.5]})
    out = tmp_path / "out.onnx"
    command = ["export", str(tmp_path / "a.pth"), str(out), "--for", "deepness"]
    assert run_command(main, [*command, "--gsd", str(gsd_m)]) == 0
    unknown = "was trained on images of 0.3 to 0.5 m/px; at 2 "
    assert (unknown in caplog.text) == (gsd_m == 2.0)

    plugin = Plugin(out)
    assert plugin.value("model_type") == "Regressor"
    assert plugin.value("resolution") == pytest.approx(100 * gsd_m)  # centimetres per pixel
    assert plugin.value("tiles_size") == plugin.shape[-1] == plugin.shape[-2]
    assert 0 < plugin.value("tiles_overlap") < 50  # per cent
    assert list(plugin.value("class_names")) == ["0"]

    size = plugin.shape[-1]
    tile = np.random.default_rng(0).integers(0, 256, (size, size, 4), dtype=np.uint8)  # with alpha
    image = torch.from_numpy(tile[:, :, :3].transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        expected = Member(load_model(tmp_path / "a.pth"))(image, torch.tensor([[gsd_m]])).agl_m
    assert float(expected.std()) > 0.01  # else the order of the channels would make no difference
    for standardizes in (False, True):
        found = plugin.process(tile, standardizes)
        np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["out.onnx", "--for", "deepness"],
        ["out.onnx", "--gsd", "0.35"],
        ["out.pth", "--for", "deepness", "--gsd", "0.35"],
        ["out.onnx", "--for", "deepness", "--gsd", "-1"],
    ],
)
def test_half_said_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "a.pth", tiny_payload())
    try:
        code = run_command(main, ["export", "a.pth", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.glob("out*"))
