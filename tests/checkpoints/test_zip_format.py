"""Zip archives of torch: compressed ones are read rightly, damaged ones and bombs are refused."""

import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from geopose.checkpoints.formats.pth import is_mapped, load_checkpoint
from geopose.checkpoints.load import load_model
from geopose.checkpoints.weights import mean_weights
from geopose.errors import InputError
from tests.tiny_run import tiny_payload, write_checkpoint


def repacked(source: Path, target: Path, method: int, **changed: bytes) -> Path:
    """An archive with all members compressed, some of them replaced (by the end of their name)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            content = changed.get(Path(name).name.replace(".", "_"), old.read(name))
            new.writestr(name, content)
    return target


def with_flipped_bit(path: Path, target: Path, where: float = 0.5) -> Path:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    name_bytes, extra_bytes = struct.unpack_from("<2H", content, member.header_offset + 26)
    start = member.header_offset + 30 + name_bytes + extra_bytes
    content[start + int(where * member.compress_size)] ^= 0x10
    target.write_bytes(content)
    return target


def test_compressed_weights_are_the_same(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain.pth")
    packed = repacked(plain, tmp_path / "packed.pth", zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < plain.stat().st_size
    assert is_mapped(plain)
    assert not is_mapped(packed)
    wanted = load_checkpoint(plain)["model_state_dict"]
    found = load_checkpoint(packed)["model_state_dict"]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    mean = mean_weights([plain, packed], "both")
    assert all(torch.equal(mean[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("packed", [False, True])
def test_a_flipped_bit_is_found(tmp_path: Path, where: float, packed: bool) -> None:
    path = write_checkpoint(tmp_path / "good.pth")
    if packed:
        path = repacked(path, tmp_path / "packed.pth", zipfile.ZIP_DEFLATED)
    bad = with_flipped_bit(path, tmp_path / "bad.pth", where)
    with pytest.raises(InputError, match=r"bad\.pth.*in it has changed"):
        load_model(bad)


def test_a_file_that_changes_is_checked_again(tmp_path: Path) -> None:
    good = write_checkpoint(tmp_path / "good.pth")
    load_model(good)
    with_flipped_bit(good, good)
    with pytest.raises(InputError, match="changed since it was written"):
        load_model(good)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_compress_are_named(tmp_path: Path, method: int) -> None:
    plain = write_checkpoint(tmp_path / "plain.pth")
    with pytest.raises(InputError, match="compressed in a way that torch does not read"):
        load_model(repacked(plain, tmp_path / "a.pth", method))


@pytest.mark.parametrize("tail", [b"\0", b"PK\5\6" + b"\0" * 18, b"x" * 70_000])
def test_nothing_follows_the_table(tmp_path: Path, tail: bytes) -> None:
    path = write_checkpoint(tmp_path / "a.pth")
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(InputError, match=r"a\.pth"):
        load_model(path)


@pytest.mark.parametrize("member", ["data_pkl", "0"])
def test_bombs_are_refused_at_once(tmp_path: Path, member: str) -> None:
    plain = write_checkpoint(tmp_path / "plain.pth")
    path = repacked(plain, tmp_path / "a.pth", zipfile.ZIP_DEFLATED, **{member: bytes(200 << 20)})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(InputError, match=r"a\.pth.*unpacks"):
        load_model(path)
    assert time.perf_counter() - started < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_what_promises_less_than_it_holds_is_refused(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain.pth")
    path = repacked(plain, tmp_path / "a.pth", zipfile.ZIP_DEFLATED, data_pkl=bytes(20 << 20))
    size, lie = (20 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, lie))
    with pytest.raises(InputError, match=r"a\.pth.*data\.pkl"):
        load_model(path)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    torch.save(tiny_payload(), tmp_path / "a.pth")
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "a.pth", "a") as archive,
    ):
        archive.writestr("a/data.pkl", b".")
    with pytest.raises(InputError, match="two members of one name"):
        load_model(tmp_path / "a.pth")
