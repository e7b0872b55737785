"""Old ways to pickle: OmegaConf containers, and tar archives of torch before 0.1.10."""

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from geopose.checkpoints.formats.pth import load_checkpoint
from geopose.errors import InputError
from tests.checkpoints.test_foreign_weights import same_weights
from tests.tiny_run import tiny_payload


def omegaconf_payload(part: bool) -> dict[str, Any]:
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["dataset"] = {
        "fold": 9, "root": "${oc.env:HOME}", "none": None, "rate": 0.5, "list": [[1], {"a": True}],
    }  # fmt: skip
    config = OmegaConf.create(payload["checkpoint_data"]["config"])
    # A part that is pickled by itself brings its parent along.
    payload["checkpoint_data"]["config"] = {k: config[k] for k in config} if part else config
    return payload


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [True, False])
def test_configs_as_omegaconf_containers(tmp_path: Path, part: bool, zipped: bool) -> None:
    payload = omegaconf_payload(part)
    torch.save(payload, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    config = load_checkpoint(tmp_path / "a.pth")["checkpoint_data"]["config"]
    expected = tiny_payload()["checkpoint_data"]["config"]
    assert config == {**expected, "dataset": {
        "fold": 9, "root": "${oc.env:HOME}", "none": None, "rate": 0.5, "list": [[1], {"a": True}],
    }}  # fmt: skip
    same_weights(tmp_path / "a.pth", payload["model_state_dict"])


class Level(Enum):
    """Something that a structured config may hold."""

    HIGH = 1


HOSTILE = {
    "omegaconf.dictconfig.DictConfig": {
        "no state": None,
        "state that is no dict": ["_content"],
        "no content": {"_metadata": None},
        "content that is a list": {"_content": [1]},
        "content that is an ordered dict": {"_content": OrderedDict(a=1)},
        "bytes as a key": {"_content": {b"a": 1}},
        "values that are no nodes": {"_content": {"a": torch.ones(1)}},
    },
    "omegaconf.listconfig.ListConfig": {"content": {"_content": {}}, "item": {"_content": [1]}},
    "omegaconf.nodes.AnyNode": {"tensor": {"_val": torch.ones(1)}, "list": {"_val": [1]}},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, states in HOSTILE.items() for name in states]
)
def test_hostile_states_of_omegaconf_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    module, _, attribute = kind.rpartition(".")
    made = getattr(__import__(module, fromlist=[attribute]), attribute)
    state = HOSTILE[kind][name]

    class Hostile:
        def __reduce__(self):
            return made, (), state or {}

    payload = {**tiny_payload(), "scheduler": [Hostile()]}
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: ") as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_nothing_else_comes_along_with_omegaconf(tmp_path: Path) -> None:
    for number, value in enumerate((Level.HIGH, Path("/tmp"))):
        payload = tiny_payload()
        payload["checkpoint_data"]["config"]["x"] = OmegaConf.create({"level": value})
        torch.save(payload, tmp_path / f"{number}.pth")
        said = rf"{number}\.pth: refused, contains (tests|pathlib)\."
        with pytest.raises(InputError, match=said):
            load_checkpoint(tmp_path / f"{number}.pth")


# --- Tar


def write_tar(path: Path, payload: dict[str, Any], **change: Any) -> Path:
    """As torch saved before 0.1.10. `change` replaces fields of the first tensor or storage."""
    storages: list[bytes] = []
    tensors: list[bytes] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> int | None:
            if not isinstance(item, Tensor):
                return None
            add(item, len(tensors))
            return 1000 + len(tensors) - 1

    def add(tensor: Tensor, number: int) -> None:
        first = change if not number else {}
        flat = tensor.contiguous().flatten()
        kind = {torch.float32: "Float", torch.int64: "Long"}[tensor.dtype]
        storages.append(
            pickle.dumps((number, "cpu", getattr(torch, first.get("kind", kind) + "Storage")), 2)
            + struct.pack("<q", first.get("count", len(flat))) + flat.numpy().tobytes()
        )  # fmt: skip
        size = first.get("size", tensor.shape)
        stride = first.get("stride", [1] * len(size) if "size" in first else tensor.stride())
        tensors.append(
            pickle.dumps((1000 + number, first.get("root", number), torch.FloatTensor), 2)
            + struct.pack("<ii", len(size), 0) + struct.pack(f"<{len(size)}q", *size)
            + struct.pack(f"<{len(size)}q", *stride) + struct.pack("<q", first.get("offset", 0))
        )  # fmt: skip

    pickled = io.BytesIO()
    Pickler(pickled, 2).dump(payload)
    members = {
        "storages": pickle.dumps(len(storages), 2) + b"".join(storages) + pickle.dumps([], 2),
        "tensors": pickle.dumps(len(tensors), 2) + b"".join(tensors),
        "pickle": pickled.getvalue(),
    }
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_tar_files_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    payload = tiny_payload()
    path = write_tar(tmp_path / "a.pth", payload)
    read = torch.load(path, weights_only=False)["model_state_dict"]
    found = load_checkpoint(path)["model_state_dict"]
    assert list(found) == list(read) == list(payload["model_state_dict"])
    for name, value in payload["model_state_dict"].items():
        assert torch.equal(found[name], read[name])
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
    same_weights(path, payload["model_state_dict"])


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1}, {"offset": -1}, {"offset": 1 << 62}, {"size": [1 << 62]},
        {"size": [-1], "stride": [1]}, {"size": [2, 2], "stride": [1 << 61, 1]},
        {"size": [10**9], "stride": [0]}, {"size": [1] * 65, "stride": [1] * 65},
        {"count": -1}, {"count": 1 << 60}, {"count": 10**6}, {"kind": "BFloat16"},
        {"root": 10**6}, {"root": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_numbers_in_tar_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_tar(tmp_path / "a.pth", tiny_payload(), **change)
    with pytest.raises(InputError, match=r"a\.pth: ") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_hostile_tar_files_are_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return eval, ("__import__('pytest').fail('ran')",)

    good = write_tar(tmp_path / "good.pth", tiny_payload()).read_bytes()
    evil = write_tar(tmp_path / "evil.pth", {**tiny_payload(), "a": Attack()})
    with pytest.raises(InputError, match=r"evil\.pth: refused, contains eval"):
        load_checkpoint(evil)
    generator = np.random.default_rng(3)
    contents = [good[:end] for end in (100, 512, 1000, 5000, len(good) // 2)]
    for _ in range(40):
        data = bytearray(good)
        data[generator.integers(0, 2000)] = generator.integers(0, 256)
        contents.append(bytes(data))
    for content in contents:
        (tmp_path / "bad.pth").write_bytes(content)
        with suppress(InputError):  # and nothing else
            load_checkpoint(tmp_path / "bad.pth")
    link = tarfile.TarInfo("storages")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.pth", "w:") as archive:
        archive.addfile(link)
    with pytest.raises(InputError, match=r"link\.pth: .*not one plain member storages"):
        load_checkpoint(tmp_path / "link.pth")
