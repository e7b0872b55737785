"""Networks as .onnx files: the same answers at any size, everything said, and no harm done.

Also heights for Deepness, a plugin of QGIS: run by onnxruntime as the plugin runs a file. What is
said of the plugin is from its documentation ("Add metadata to model", "Model classes") and its
published source, and not from what this project writes. All exports are here, in one process:
torch's exporter takes many times longer to start than for one of these networks.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from geopose.checkpoints import deepness
from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.facts import CALIBRATION, Gains
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.inference.build import load_engine
from geopose.inference.predict.ensemble import Member
from geopose.inference.submission.command import submit
from tests.tiny_run import (
    model_config,
    payload_of,
    tiny_payload,
    write_checkpoint,
    write_config,
    write_split,
)

GAINS = Gains(1.25, 1.6)  # of heights and of flow
OUTPUTS = {
    "agl": "OUTPUT_AGL_MASK", "magnitude": "OUTPUT_MAGNITUDE_MASK",
    "scale": "OUTPUT_VFLOW_SCALE", "direction": "OUTPUT_VFLOW_DIRECTION",
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pth, of BGR planes at half size, calibrated, and a.onnx made of it.

    Its config is in the published form, and the heights end otherwise than with a ReLU.
    """
    folder = tmp_path_factory.mktemp("onnx")
    head = {
        "_target_": "geopose.models.heads.AGLHead",
        "agl_activation": "softplus",
        "agl_transformation": "sqrt",
    }
    inner = {"activation": "silu", **model_config(agl_head=head)}
    del inner["channel_order"]
    payload = payload_of({"_target_": inner.pop("_target_"), "config": inner}, seed=3)
    payload["checkpoint_data"]["config"]["train"]["downsample"] = 2
    payload["checkpoint_data"]["config"]["dataset"] = {"fold": 4}
    payload[CALIBRATION] = GAINS._asdict()
    save_checkpoint(folder / "a.pth", payload)
    assert run_command(main, ["export", str(folder / "a.pth"), str(folder / "a.onnx")]) == 0
    return folder


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 64, 64), (3, 97, 130), (2, 33, 200), (1, 160, 31)]
)
def test_onnxruntime_agrees_with_torch(exported: Path, batch: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    image = torch.randn((batch, 3, height, width), generator=generator)
    gsd = torch.rand((batch, 1), generator=generator)
    session = onnxruntime.InferenceSession(exported / "a.onnx", providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {"image": image.numpy(), "gsd": gsd.numpy()})
    model = load_model(exported / "a.pth").model
    with torch.inference_mode():
        expected = model(image, gsd)
    for value, key in zip(found, OUTPUTS.values(), strict=True):
        wanted = expected[key].numpy()
        assert value.shape == wanted.shape
        assert value.dtype == np.float32
        assert np.abs(value - wanted).max() <= 1e-3 * np.abs(wanted).max(), key


def test_metadata_says_how_to_use_it(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "a.onnx", providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert said["channel_order"] == "bgr"
    assert json.loads(said["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(said["std"]) == [0.229, 0.224, 0.225]
    assert "255" in said["normalization"]
    assert "metres" in said["units"]
    assert (said["downsample"], said["scale_and_gsd_of"]) == ("2", "reduced image")
    assert json.loads(said["geopose"])["checkpoint_data"]["config"]["dataset"] == {"fold": 4}
    image, gsd = session.get_inputs()
    assert (image.name, gsd.name) == ("image", "gsd")
    assert (image.shape, gsd.shape) == (["batch", 3, "height", "width"], ["batch", 1])
    assert session.get_outputs()[0].shape == ["batch", 1, "height", "width"]


def test_its_calibration_is_kept_and_not_in_the_network(exported: Path) -> None:
    loaded = load_engine(exported / "a.onnx")
    assert loaded.gains == GAINS
    rgb = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    gsd_m = torch.tensor([[0.5]])
    with torch.inference_mode():
        found = Member(loaded)(rgb, gsd_m)
        expected = Member(load_model(exported / "a.pth"))(rgb, gsd_m)
    torch.testing.assert_close(found.agl_m, expected.agl_m, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.scale_px_per_m, expected.scale_px_per_m, rtol=1e-3, atol=1e-3)
    session = onnxruntime.InferenceSession(exported / "a.onnx", providers=["CPUExecutionProvider"])
    words = session.get_modelmeta().custom_metadata_map["calibration"]
    assert f"multiply agl by {GAINS.agl}" in words
    assert f"magnitude by {GAINS.magnitude}" in words


def test_info_of_both_files_is_the_same(exported: Path, capsys) -> None:
    said = []
    for name in ("a.pth", "a.onnx"):
        assert run_command(main, ["info", str(exported / name)]) == 0
        said.append(capsys.readouterr().out.splitlines()[1:-1])
    assert said[0] == said[1]
    assert any("parameters" in line for line in said[0])


def test_submit_runs_onnx_files_beside_others(exported: Path, tmp_path: Path) -> None:
    """Alone and in a mixture, with views and batches, at sizes that 32 does not divide."""
    other = write_checkpoint(tmp_path / "b.pth", seed=5)
    data = write_split(tmp_path / "data")
    for mode in ("alone", "mixed"):
        found = []
        for suffix in (".pth", ".onnx"):
            folder = tmp_path / mode / suffix
            folder.mkdir(parents=True)
            models = [exported / f"a{suffix}", *([other] if mode == "mixed" else [])]
            config = write_config(folder / "c.yaml", models, batch_size=2)
            arguments = [str(config), "--data-dir", str(data), "ensemble.tta=fliplr"]
            assert run_command(submit, arguments) == 0
            found.append(folder / "out/submission")
        for path in sorted(found[0].iterdir()):
            same = found[1] / path.name
            if path.suffix == ".tif":
                np.testing.assert_allclose(read_agl_m(path), read_agl_m(same), atol=0.011)
            else:
                np.testing.assert_allclose(read_vflow(path), read_vflow(same), rtol=1e-4)


def spoil(name: str, model: onnx.ModelProto) -> None:
    graph = model.graph
    if name == "weights elsewhere":
        tensor = graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value="../../../etc/passwd")
    elif name == "weights elsewhere, in a constant":
        value = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        value.external_data.add(key="location", value="/etc/passwd")
        graph.node.append(onnx.helper.make_node("Constant", [], ["x"], value=value))
    elif name == "custom operator":
        graph.node.append(onnx.helper.make_node("Run", ["gsd"], ["x"], domain="evil.ops"))
    elif name == "unknown operator":
        graph.node.append(onnx.helper.make_node("Run", ["gsd"], ["x"]))
    elif name == "other inputs":
        graph.input.add().CopyFrom(
            onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1])
        )
    elif name == "other outputs":
        del graph.output[0]
    elif name == "not ours":
        del model.metadata_props[:]
    elif name == "facts that are none":
        next(e for e in model.metadata_props if e.key == "geopose").value = '{"checkpoint_data": 1}'
    elif name == "facts not JSON":
        next(e for e in model.metadata_props if e.key == "geopose").value = "[" * 10**5


BAD = {
    "weights elsewhere": "weights in other files",
    "weights elsewhere, in a constant": "weights in other files",
    "custom operator": "operator evil.ops.Run",
    "unknown operator": "onnxruntime cannot run it",
    "other inputs": "has inputs .*more",
    "other outputs": "outputs",
    "not ours": "does not say which network",
    "facts that are none": "does not say which network",
    "facts not JSON": "not readable",
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_files_are_refused_in_one_line(exported: Path, tmp_path: Path, name: str) -> None:
    model = onnx.load_model(exported / "a.onnx")
    spoil(name, model)
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=rf"b\.onnx: .*{BAD[name]}") as caught:
        load_engine(tmp_path / "b.onnx")
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused_in_one_line(exported: Path, tmp_path: Path) -> None:
    good = (exported / "a.onnx").read_bytes()
    for bad in (b"", b"garbage" * 50, good[:100], good[: len(good) // 2], good[:-1]):
        (tmp_path / "b.onnx").write_bytes(bad)
        with pytest.raises(InputError, match=r"b\.onnx: ") as caught:
            load_engine(tmp_path / "b.onnx")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["average", "export", "averaging config"])
def test_where_weights_are_needed_it_is_refused(exported: Path, tmp_path, capsys, command) -> None:
    path, out = str(exported / "a.onnx"), str(tmp_path / "out.pth")
    if command == "average":
        assert run_command(main, ["average", path, path, "-o", out]) == 2
    elif command == "export":
        assert run_command(main, ["export", path, out]) == 2
    else:
        data = write_split(tmp_path / "data", [(64, 64)])
        config = write_config(tmp_path / "c.yaml", [{"average_checkpoints": [path, path]}])
        assert run_command(submit, [str(config), "--data-dir", str(data)]) == 2
    assert "gives no weights" in capsys.readouterr().err.splitlines()[-1]


def test_without_cuda_in_onnxruntime_it_says_so_and_uses_the_cpu(exported, monkeypatch, caplog):
    model = load_engine(exported / "a.onnx").model
    assert model.to("cpu") is model
    session = model._session(torch.device("cuda", 0))
    assert session is model._session(torch.device("cpu"))
    assert "runs on the CPU: onnxruntime has no CUDA" in caplog.text


# --- Heights for the plugin


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


def said_for_plugin(folder: Path, gsd_m: float, training: dict[str, Any], **changes: Any) -> Path:
    """out.onnx, made by the command of a network that knows 0.3 to 0.5 metres per pixel, a.pth."""
    payload = tiny_payload(3, **changes)
    payload["checkpoint_data"]["config"]["train"].update(training)
    save_checkpoint(folder / "a.pth", {**payload, "gsd_range_m": [0.3, 0.5]})
    command = ["export", str(folder / "a.pth"), str(folder / "out.onnx"), "--for", "deepness"]
    assert run_command(main, [*command, "--gsd", str(gsd_m)]) == 0
    return folder / "out.onnx"


def heights_of_tile(model: Path, side: int, gsd_m: float) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """A made-up tile, RGB with alpha, and the heights in metres that predictions of it have."""
    tile = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    image = torch.from_numpy(tile[:, :, :3].transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        expected = Member(load_model(model))(image, torch.tensor([[gsd_m]])).agl_m
    assert float(expected.std()) > 0.01  # else the order of the channels would make no difference
    return tile, expected


def test_the_plugin_sees_the_heights_that_predictions_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a network of BGR planes at half size, at a GSD that it does not know."""
    gsd_m = 2.0
    out = said_for_plugin(tmp_path, gsd_m, {"downsample": 2}, channel_order="bgr")
    assert "was trained on images of 0.3 to 0.5 m/px; at 2 " in caplog.text

    plugin = Plugin(out)
    assert plugin.value("model_type") == "Regressor"
    assert plugin.value("resolution") == pytest.approx(100 * gsd_m)  # centimetres per pixel
    assert plugin.value("tiles_size") == plugin.shape[-1] == plugin.shape[-2]
    assert 0 < plugin.value("tiles_overlap") < 50  # per cent
    assert list(plugin.value("class_names")) == ["0"]

    tile, expected = heights_of_tile(tmp_path / "a.pth", plugin.shape[-1], gsd_m)
    for standardizes in (False, True):
        found = plugin.process(tile, standardizes)
        np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3, atol=1e-3)


def test_for_the_plugin_planes_of_rgb_stay_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network that is exported; the exporter has no part in the order."""
    networks: list[nn.Module] = []

    def keep(network: nn.Module, *_: object) -> onnx.ModelProto:
        networks.append(network.eval())
        return onnx.ModelProto()

    monkeypatch.setattr(deepness, "traced", keep)
    said_for_plugin(tmp_path, 0.35, {})
    assert "was trained on images" not in caplog.text
    tile, expected = heights_of_tile(tmp_path / "a.pth", 64, 0.35)
    planes = torch.from_numpy(tile[None, :, :, :3].transpose(0, 3, 1, 2) / np.float32(255))
    with torch.inference_mode():
        torch.testing.assert_close(networks[0](planes), expected, rtol=1e-3, atol=1e-3)


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
