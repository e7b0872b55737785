"""The shapes in which weights arrive from elsewhere, told by what is in a file."""

import logging
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.checkpoints.load import load_model
from geopose.checkpoints.weights import mean_weights
from geopose.cli import run_command
from geopose.errors import InputError
from geopose.inference.config import load_config
from geopose.inference.submission.command import submit
from geopose.models.build import build_model
from geopose.training.initial_weights import apply_initial_weights
from tests.tiny_run import model_config, tiny_payload, write_config, write_split

PARENT_YAML = """
_target_: geopose.models.geopose_unet.GeoposeUNetModel.from_config
slug: parent
channel_order: rgb
encoder:
  _target_: geopose.models.encoders.TimmEncoder
  name: test_efficientnet
  layers: [1, 2, 3]
decoder: {block_type: unet, channels: [8, 16]}
agl_head: {_target_: geopose.models.heads.AGLHead, embedding_size: 8}
orientation_head: {_target_: geopose.models.heads.BasicOrientationHead}
"""
CHILD_YAML = "defaults: [parent, _self_]\nslug: child\ndecoder:\n  channels: [8, 12]\n"


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    """A model YAML that builds on another one, as some in configs/model do."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/parent.yaml").write_text(PARENT_YAML)
    (tmp_path / "models/child.yaml").write_text(CHILD_YAML)
    return tmp_path / "models/child.yaml"


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of 2021."""
    return {n.replace(".norm1.", ".abn1.bn.").replace(".norm2.", ".abn2.bn."): w
            for n, w in weights.items()}  # fmt: skip


def same_weights(path: Path, expected: dict[str, Tensor], **more: Any) -> None:
    """Compares a loaded network with weights."""
    for name, value in load_model(path, **more).model.state_dict().items():
        assert torch.equal(value, expected[name].to(value.dtype)), name


# --- Names


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."]
)
def test_names_of_wrapped_networks(tmp_path: Path, prefix: str) -> None:
    payload = tiny_payload()
    plain = payload["model_state_dict"]
    payload["model_state_dict"] = {prefix + n: w for n, w in old_names(plain).items()}
    torch.save(payload, tmp_path / "a.pth")
    same_weights(tmp_path / "a.pth", plain)
    assert list(mean_weights([tmp_path / "a.pth"] * 2, "a")) == list(plain)
    model = build_model(model_config(), load_pretrained=False)
    cfg = {"checkpoint": str(tmp_path / "a.pth"), "transfer": None, "model": model_config()}
    apply_initial_weights(model, {**cfg, "transfer_encoder_decoder": None})
    assert torch.equal(model.state_dict()["decoder.blocks.0.conv1.weight"],
                       plain["decoder.blocks.0.conv1.weight"])  # fmt: skip


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_before_some_names_only_is_refused(tmp_path: Path, prefix: str) -> None:
    payload = tiny_payload()
    names = list(payload["model_state_dict"])
    payload["model_state_dict"] = {
        (prefix if name == names[3] else "") + name: w
        for name, w in payload["model_state_dict"].items()
    }
    torch.save(payload, tmp_path / "a.pth")
    said = f"begin with '{prefix}': {prefix}{names[3]} does, {names[0]}"
    with pytest.raises(InputError, match=rf"a\.pth: only some parameter names {said}"):
        load_model(tmp_path / "a.pth")


def test_state_dict_is_another_name_for_the_weights(tmp_path: Path) -> None:
    payload = tiny_payload()
    weights = payload.pop("model_state_dict")
    torch.save({**payload, "state_dict": weights}, tmp_path / "a.pth")
    same_weights(tmp_path / "a.pth", weights)
    torch.save({**payload, "state_dict": weights, "model_state_dict": weights}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth: holds both model_state_dict and state_dict"):
        load_model(tmp_path / "b.pth")


# --- Weights alone


def write_bare(path: Path, weights: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({n: w.contiguous() for n, w in weights.items()}, path)
    else:
        torch.save(OrderedDict(weights) if "flat" in path.name else {"state_dict": weights}, path)
    return path


@pytest.mark.parametrize("name", ["flat.pth", "dict.pth", "a.safetensors"])
def test_weights_alone_predict_with_a_model_beside_them(
    tmp_path: Path, yaml: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = tiny_payload(4)
    bare = write_bare(tmp_path / name, payload["model_state_dict"])
    torch.save(payload, tmp_path / "whole.pth")
    data = write_split(tmp_path / "data", [(64, 64)])
    archives = []
    models = [tmp_path / "whole.pth", {"checkpoint": str(bare), "model": str(yaml)},
              {"average_checkpoints": [str(bare)] * 2, "model": str(yaml)}]  # fmt: skip
    for number, entry in enumerate(models):
        config = write_config(tmp_path / "c.yaml", [entry])
        arguments = [str(config), "--data-dir", str(data), f"submission_dir={tmp_path}/{number}"]
        assert run_command(submit, arguments) == 0
        archives.append((tmp_path / f"{number}/submission_compressed.tar.gz").read_bytes())
    assert archives[0] == archives[1] == archives[2]

    beside = ["--model", str(yaml), "--channel-order", "bgr"]
    assert run_command(main, ["info", str(bare), *beside]) == 0
    said = capsys.readouterr().out
    assert "channel order:  bgr" in said
    assert "slug:           child" in said
    out = tmp_path / "out.safetensors"
    assert run_command(main, ["export", str(bare), str(out), *beside]) == 0
    mean = tmp_path / "mean.pth"
    assert run_command(main, ["average", str(bare), str(bare), "-o", str(mean), *beside]) == 0
    for path in (out, mean):
        same_weights(path, payload["model_state_dict"])
        assert load_model(path).channel_order == "bgr"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"checkpoint": "bare.pth"}, r"bare\.pth: .*does not say which network .*model: configs/"),
        ({"checkpoint": "own.pth", "model": "Y"}, r"own\.pth: says itself .*child\.yaml is given"),
        ({"checkpoint": "bare.pth", "model": "Y", "downsample": 2}, "downsample is 2 beside model"),
        ({"checkpoint": "bare.pth", "model": "none.yaml"}, r"none\.yaml: no such model YAML"),
        ({"checkpoint": "bare.pth", "model": "W"}, r"wrong\.yaml: .*unknown key 'neck'"),
        ({"checkpoint": "bare.pth", "model": ["a"]}, "must be a model YAML"),
        ({"checkpoint": "bare.pth", "channel_order": "rgb"}, "channel_order goes with it"),
        (
            {"checkpoint": "bare.pth", "model": "Y", "channel_order": "grb"},
            "channel_order=grb: must be one of rgb, bgr",
        ),
    ],
)
def test_ambiguous_weights_are_refused_by_name(
    tmp_path: Path, yaml: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], said: str
) -> None:
    payload = tiny_payload()
    torch.save(payload["model_state_dict"], tmp_path / "bare.pth")
    torch.save(payload, tmp_path / "own.pth")
    (tmp_path / "models/wrong.yaml").write_text(PARENT_YAML + "neck: {}\n")
    places = {"Y": str(yaml), "W": str(tmp_path / "models/wrong.yaml")}
    entry = {k: places.get(v, v) if isinstance(v, str) else v for k, v in entry.items()}
    entry["checkpoint"] = str(tmp_path / entry["checkpoint"])
    config = write_config(tmp_path / "c.yaml", [entry])
    data = write_split(tmp_path / "data", [(64, 64)])
    assert run_command(submit, [str(config), "--data-dir", str(data)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(said, error), error


def test_the_order_of_channels_is_that_of_the_yaml_or_the_entry(
    tmp_path: Path, yaml: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tiny_payload()["model_state_dict"]
    bare = write_bare(tmp_path / "flat.pth", old_names(weights))
    silent = yaml.with_name("silent.yaml")
    silent.write_text(PARENT_YAML.replace("channel_order: rgb\n", "").replace("16", "12"))
    found = []
    for more in ({}, {"channel_order": "bgr"}, {"model": str(silent)}):
        entry = {"checkpoint": str(bare), "model": str(yaml), **more}
        config = load_config(write_config(tmp_path / "c.yaml", [entry]))
        network = config.models[0].network
        found.append(load_model(bare, network).channel_order)
    assert found == ["rgb", "bgr", "bgr"]
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "names of the published models, which read bgr" in warned[0]


def test_a_published_yaml_stands_beside_weights_as_well(tmp_path: Path) -> None:
    config = model_config()
    del config["agl_head"]["embedding_size"], config["channel_order"]
    for head in ("agl_head", "orientation_head"):
        config[head]["activation"] = "relu"
    weights = build_model(config, load_pretrained=False).state_dict()
    nested = {"_target_": config.pop("_target_"), "config": {**config, "activation": "silu"}}
    (tmp_path / "m.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(nested)))
    entry = {"checkpoint": str(write_bare(tmp_path / "a.pth", weights)),
             "model": str(tmp_path / "m.yaml")}  # fmt: skip
    read = load_config(write_config(tmp_path / "c.yaml", [entry])).models[0]
    same_weights(read.files[0], weights, given=read.network)


@pytest.mark.parametrize("key", ["checkpoint", "transfer", "transfer_encoder_decoder"])
def test_trainings_start_from_weights_alone(
    tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tiny_payload(4)["model_state_dict"]
    bare = write_bare(tmp_path / "flat.pth", weights)
    model = build_model(model_config(), load_pretrained=False)
    nothing = {"checkpoint": None, "transfer": None, "transfer_encoder_decoder": None}
    with caplog.at_level(logging.INFO):
        apply_initial_weights(model, {**nothing, key: str(bare), "model": model_config()})
    name = "decoder.blocks.0.conv1.weight"
    assert torch.equal(model.state_dict()[name], weights[name])
    assert "do not say their channel order; taken for rgb" in caplog.text


@pytest.mark.parametrize(
    "odd",
    [
        {"train": {"downsample": 32}},
        {"train": {"downsample": "2"}},
        {"train": {"gsd_m": 0}},
        {"model": model_config(normalization={"mean": 1})},
        {"dataset": {"rows": b"bytes"}},
    ],
)
def test_what_a_file_says_oddly_of_its_images_keeps_no_training_from_starting(
    tmp_path: Path, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    payload = tiny_payload(4)
    payload["checkpoint_data"]["config"] |= odd
    torch.save(payload, tmp_path / "a.pth")
    model = build_model(model_config(), load_pretrained=False)
    cfg = {"checkpoint": None, "transfer": str(tmp_path / "a.pth"), "model": model_config()}
    with caplog.at_level(logging.INFO):
        apply_initial_weights(model, {**cfg, "transfer_encoder_decoder": None})
    name = "decoder.blocks.0.conv1.weight"
    assert torch.equal(model.state_dict()[name], payload["model_state_dict"][name])
    assert "how its images were shown is not compared" in caplog.text


# --- Types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_float32_once_loaded_and_not_rounded_when_averaged(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    halves = []
    for seed in (1, 2, 3):
        payload = tiny_payload(seed)
        state = payload["model_state_dict"]
        payload["model_state_dict"] = {
            n: w.to(dtype) if w.is_floating_point() else w for n, w in state.items()
        }
        halves.append(payload["model_state_dict"])
        torch.save(payload, tmp_path / f"{seed}.pth")
    same_weights(tmp_path / "1.pth", halves[0])
    files = [tmp_path / f"{seed}.pth" for seed in (1, 2, 3)]
    out = tmp_path / "m.pth"
    assert run_command(main, ["average", *map(str, files), "-o", str(out)]) == 0
    for state in (load_model(files).model.state_dict(), load_model(out).model.state_dict()):
        assert all(w.dtype == torch.float32 for w in state.values() if w.is_floating_point())
        name = "decoder.blocks.0.conv1.weight"
        mean = torch.stack([half[name].double() for half in halves]).mean(0).float()
        torch.testing.assert_close(state[name], mean, rtol=1e-6, atol=1e-9)


SCALAR = (  # np.float64(0.5), np.int64(7) as numpy pickles them in protocol 2
    b"c%(core)s.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00%(code)sK\x00K\x01tR"
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"c_codecs\nencode\n(X%(size)s%(text)sX\x06\x00\x00\x00latin1tRtR"
)


def scalar(core: bytes, value: Any) -> bytes:
    """A hand-made pickle of a numpy scalar, without its frame."""
    value = np.asarray(value)
    text = value.tobytes().decode("latin1").encode()
    parts = {b"core": core, b"code": value.dtype.str[1:].encode(), b"text": text,
             b"size": struct.pack("<I", len(text))}  # fmt: skip
    return SCALAR % parts


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_scalars_of_numpy_1_and_2(tmp_path: Path, core: bytes) -> None:
    payload = tiny_payload()
    payload["metrics"] = "HERE"
    torch.save(payload, tmp_path / "a.pth")
    items = b"".join(b"X\x01\x00\x00\x00" + name + scalar(core, value)
                     for name, value in ((b"a", np.float64(0.5)), (b"b", np.int64(7))))  # fmt: skip
    inserted = b"}(" + items + b"u"
    assert {k: float(v) for k, v in pickle.loads(b"\x80\x02" + inserted + b".").items()} == {
        "a": 0.5,
        "b": 7,
    }
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"X\x04\x00\x00\x00HERE") == 1
                content = content.replace(b"X\x04\x00\x00\x00HERE", inserted)
            new.writestr(name, content)
    assert load_checkpoint(tmp_path / "b.pth")["metrics"] == {"a": 0.5, "b": 7}


def test_a_pickle_of_a_later_protocol_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(tiny_payload(), tmp_path / "a.pth", pickle_protocol=4)
    with pytest.raises(InputError, match=r"a\.pth: .*protocol 4.*torch\.save"):
        load_checkpoint(tmp_path / "a.pth")
