"""Files that are no checkpoints are told by what they hold; a download that is none is not kept."""

import gzip
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geopose.checkpoints.load import load_model
from geopose.checkpoints.remote.download import Patience
from geopose.checkpoints.remote.fetch import Source, fetch_all
from geopose.errors import InputError
from geopose.files.kinds import foreign_kind
from geopose.inference.resume.settings import difference
from tests.file_server import FileServer, whole
from tests.tiny_run import tiny_payload, write_checkpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
KINDS = {
    "empty": (b"", "is empty"),
    "page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
    "page in capitals": (b"\n\n<HTML>", "web page"),
    "pointer": (LFS, "git lfs pull"),
    "gzip": (gzip.compress(b"x" * 100), "gzip; unpack"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG picture"),
    "protocol 4": (pickle.dumps({"a": 1}, 4), "protocol 4"),
    "protocol 5": (pickle.dumps({"a": 1}, 5), "protocol 4 or later"),
    "answer of a server": (b'{"error": "not authorised"}', "text file"),
    "xml": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "text file"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
@pytest.mark.parametrize("name", KINDS)
def test_told_by_content(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(KINDS[name][0])
    with pytest.raises(InputError, match=KINDS[name][1]) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_under_another_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.pth")
    write_checkpoint(tmp_path / "b.pth").rename(tmp_path / "b.safetensors")
    write_checkpoint(tmp_path / "c.pth").rename(tmp_path / "c.onnx")
    for name, said in (("a.pth", "safetensors"), ("b.safetensors", r"\.pth"), ("c.onnx", r"\.pth")):
        with pytest.raises(InputError, match=f"give it a name that ends with .*{said}"):
            load_model(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_torch_writes_is_taken(tmp_path: Path, zipped: bool, protocol: int) -> None:
    torch.save(
        tiny_payload(), tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped, pickle_protocol=protocol,
    )  # fmt: skip
    given = tiny_payload()["model_state_dict"]
    assert load_model(tmp_path / "a.pth").model.state_dict().keys() == given.keys()


def test_a_bad_download_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    good = write_checkpoint(tmp_path / "good.pth").read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    patience = Patience(timeout_s=0.5, delays_s=())
    for body in (*(content for content, _ in KINDS.values()), bytes(damaged), good[:-100]):
        with FileServer(whole(body)) as server, pytest.raises(InputError) as caught:
            fetch_all([Source(server.url("a.pth"))], patience)
        assert "nothing was kept" in str(caught.value)
        assert not (tmp_path / "cache").exists()
    with FileServer(whole(good)) as server:
        load_model(fetch_all([Source(server.url("a.pth"))], patience))


def test_the_setting_that_changed_is_named() -> None:
    def settings(*models: dict, **more: object) -> dict:
        return {"models": list(models), "tta": None, **more}

    first = {"sha256": ["a" * 64], "downsample": None}
    other = {"sha256": ["b" * 64, "c" * 64], "downsample": 2, "network": ["{}", "bgr"]}
    assert difference(settings(first), settings(first, tta="d4")) == "tta null -> d4"
    assert difference(settings(first), settings(first, other)) == "models 1 -> 2"
    told = difference(settings(first, first), settings(first, other))
    assert "sha256 of model 2 aaaaaaaa -> bbbbbbbb+cccccccc" in told
    assert "downsample of model 2 null -> 2" in told
    assert "network of model 2 null -> " in told
    assert difference(settings(first), {"models": 3}).startswith("models 1 -> 0")


@pytest.mark.parametrize("length", [0x480, 0x580, 0x880, 0x1080])
@pytest.mark.parametrize("suffix", [".safetensors", ".int8"])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(
    tmp_path: Path, length: int, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(length.to_bytes(8, "little") + b"{}".ljust(length))
    assert foreign_kind(path) == ""
