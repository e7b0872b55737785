"""Checkpoints made to do harm: nothing in them runs, and each is refused in one line."""

import io
import os
import socket
import zipfile
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.checkpoints.load import load_model
from geopose.errors import InputError
from geopose.models.build import build_model
from tests.tiny_run import model_config, tiny_payload

MARKER = "GEOPOSE_TEST_RAN"


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch: pytest.MonkeyPatch):
    """Fails a test whose file managed to run something, or to call anybody."""
    monkeypatch.delenv(MARKER, raising=False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went to the network"))
    yield
    assert MARKER not in os.environ


class Call:
    """Unpickles to the result of a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


RAN = f"__import__('os').environ.__setitem__({MARKER!r}, '1')"
OBJECTS = {
    "posix.system": Call(os.system, "true"),
    "eval": Call(eval, RAN),
    "exec": Call(exec, RAN),
    "getattr": Call(getattr, OrderedDict, "fromkeys"),
    "torch.hub.load": Call(torch.hub.load, "somebody/repo", "model"),
    "torch.serialization.load": torch.load,
    "numpy.load": np.load,
    "builtins.__import__": Call(__import__, "os"),
    "pathlib": Path("/tmp"),
    "datetime": datetime(2021, 7, 1),
    "numpy type": np.array([eval], dtype=object),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_refused(tmp_path: Path, name: str, zipped: bool) -> None:
    payload = {**tiny_payload(), "scheduler_state_dict": {"a": [OBJECTS[name]]}}
    torch.save(payload, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"a\.pth") as caught:
        load_checkpoint(tmp_path / "a.pth")
    message = str(caught.value)
    assert "\n" not in message
    assert name.rpartition(".")[2] in message


PICKLES = {
    "opcode INST": b"(S'true'\nios\nsystem\n.",
    "opcode OBJ": b"(cposix\nsystem\nS'true'\no.",
    "stack global": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x85R.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id of no storage": b"\x80\x02X\x03\x00\x00\x00abcQ.",
    "call of a tensor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "storage that is not there": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x009X\x03\x00\x00\x00cpuK\x05tQ.",
    "set state of numpy": b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tR.",
    "build on a class": b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_raw_pickles_are_refused(tmp_path: Path, name: str) -> None:
    torch.save(tiny_payload(), tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "a.pth", "w") as bad,
    ):
        for item in good.namelist():
            pickled = item.endswith("data.pkl")
            bad.writestr(item, PICKLES[name] if pickled else good.read(item))
    (tmp_path / "b.pth").write_bytes(PICKLES[name])
    for file in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=file.replace(".", r"\.")) as caught:
            load_checkpoint(tmp_path / file)
        assert "\n" not in str(caught.value)


EVIL = "os.system"
PART = {"_target_": EVIL, "command": "true"}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({**model_config(), "_target_": EVIL}, EVIL),
    "encoder": (model_config(encoder=PART), EVIL),
    "orientation head": (model_config(orientation_head=PART), EVIL),
    "through an allowed module": (
        model_config(agl_head={"_target_": "geopose.models.heads.torch.hub.os.system"}),
        "geopose.models.heads.torch.hub.os.system",
    ),
    "through an allowed class": (
        model_config(agl_head={"_target_": "geopose.models.heads.AGLHead.__init__.__globals__"}),
        "AGLHead.__init__",
    ),
    "target that is no text": (model_config(agl_head={"_target_": [EVIL]}), "agl_head"),
    "nested": (
        {"_target_": model_config()["_target_"], "config": model_config(encoder=PART)},
        EVIL,
    ),
    "decoder": (model_config(decoder={**model_config()["decoder"], "_target_": EVIL}), "decoder"),
    "in an argument": (
        model_config(agl_head={**model_config()["agl_head"], "activation": PART}),
        "agl_head",
    ),
    **{
        f"hydra's {key}": (
            model_config(agl_head={**model_config()["agl_head"], key: value}),
            key,
        )
        for key, value in {"_args_": [PART], "_partial_": True, "_method_": EVIL}.items()
    },
    "interpolation": (model_config(agl_head={"_target_": "${oc.env:HOME}"}), r"\$\{oc"),
    "weights from a hub": (
        model_config(encoder={**model_config()["encoder"], "name": "hf-hub:somebody/model"}),
        "hf-hub",
    ),
    "weights from a folder": (
        model_config(encoder={**model_config()["encoder"], "name": "local-dir:/tmp/model"}),
        "local-dir",
    ),
    "options of timm": (
        model_config(encoder={**model_config()["encoder"], "pretrained_cfg": {"url": "x"}}),
        "pretrained_cfg",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_builds_allowed_things_only(tmp_path: Path, name: str) -> None:
    config, said = CONFIGS[name]
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["model"] = config
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth.*{said}") as caught:
        load_model(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_pretrained_weights_are_never_looked_for(tmp_path: Path) -> None:
    payload = tiny_payload()
    for where in ("encoder", "config"):
        config = model_config()
        config["encoder"]["pretrained"] = True
        del config["agl_head"]["embedding_size"]  # the published form does not read it
        payload["model_state_dict"] = build_model(config, load_pretrained=False).state_dict()
        if where == "config":
            config = {"_target_": config.pop("_target_"), "config": config}
        payload["checkpoint_data"]["config"]["model"] = config
        torch.save(payload, tmp_path / "a.pth")
        load_model(tmp_path / "a.pth")


def laughs() -> list:
    """A few lists whose text would fill the memory."""
    value: list = ["ha"] * 10
    for _ in range(12):
        value = [value] * 10
    return value


def deep() -> list:
    value: list = []
    for _ in range(200):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [laughs(), deep(), 10**5000, b"x", torch.ones(2)],
    ids=["billion laughs", "deep", "huge number", "bytes", "tensor"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["_target_", "more"])
def test_configs_that_are_none(tmp_path: Path, value: Any, key: str) -> None:
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["model"][key] = value
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth") as caught:
        load_model(tmp_path / "a.pth")
    assert len(str(caught.value)) < 400


def sparse() -> torch.Tensor:
    return torch.ones(8, 8).to_sparse()


@pytest.mark.parametrize(
    "tensor",
    [
        sparse(),
        torch.ones(8, device="meta"),
        torch.ones(1).expand(10**12),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.int64),
    ],
    ids=["sparse", "meta", "endless", "complex", "integer"],
)
def test_weights_that_are_none(tmp_path: Path, tensor: torch.Tensor) -> None:
    payload = tiny_payload()
    payload["model_state_dict"]["orientation_head.orientation.3.bias"] = tensor
    torch.save(payload, tmp_path / "a.pth")
    for paths in ([tmp_path / "a.pth"], [tmp_path / "a.pth"] * 2):
        with pytest.raises(InputError, match=r"a\.pth.*orientation\.3\.bias"):
            load_model(paths)


def test_a_network_far_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["model"]["decoder"]["channels"] = [1 << 18, 1 << 18]
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: weights do not fit"):
        load_model(tmp_path / "a.pth")


def test_a_script_is_no_archive(tmp_path: Path) -> None:
    """TorchScript files are zip archives too, and hold code."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"a\.pth"):
        load_checkpoint(tmp_path / "a.pth")
