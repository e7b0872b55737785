"""Damage that decoders pass over is found: what the checksums and libjpeg's warnings tell."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopose.data.rgb import read_rgb, write_png
from geopose.errors import InputError
from tests.tiny_data import smooth_rgb


def picture(height: int = 240, width: int = 320) -> Image.Image:
    noise = np.random.default_rng(3).integers(-20, 20, (height, width, 3))
    return Image.fromarray((smooth_rgb(height, width) + noise).clip(0, 255).astype(np.uint8))


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    picture().save(file, "JPEG", **options)
    return file.getvalue()


JPEGS = {
    "baseline": jpeg(quality=90),
    "progressive": jpeg(progressive=True),
    "restarts": jpeg(restart_marker_blocks=8),
    "444": jpeg(subsampling=0, optimize=True),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_sound_jpeg_is_read_also_with_something_behind_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    for data in (JPEGS[kind], JPEGS[kind] + b"made by a camera"):
        path.write_bytes(data)
        assert np.array_equal(read_rgb(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-2],
        lambda data: data[:-1],
        lambda data: data[: len(data) * 2 // 3],
        lambda data: data[: len(data) * 2 // 3] + b"\xff\xd9",
        lambda data: data[:-12] + b"\xff\xd9",
        lambda data: data[: len(data) // 2] + bytes(len(data) // 3) + data[len(data) * 5 // 6 :],
        lambda data: data[: len(data) * 2 // 3] + bytes(len(data) // 3),
    ],
    ids=["no EOI", "half EOI", "cut", "cut and EOI", "end lost", "hole", "zeroed tail"],
)
def test_a_damaged_jpeg_is_named(
    tmp_path: Path, kind: str, spoil: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(spoil(JPEGS[kind]))
    with pytest.raises(InputError, match=r"a\.jpg: broken image \(.*get a good copy") as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_what_others_write_meanwhile_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEGS["baseline"])

    def decode(*_: object) -> np.ndarray:
        os.write(2, b"progress\n")
        return np.zeros(1)

    monkeypatch.setattr("cv2.imdecode", decode)
    read_rgb(path)
    assert capfd.readouterr().err == "progress\n"


def chunks(data: bytes) -> list[tuple[int, int, bytes]]:
    """(offset, length of the content, kind) of a PNG's chunks."""
    found, offset = [], 8
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        found.append((offset, length, kind))
        offset += 12 + length
    return found


@pytest.mark.parametrize("place", ["last content", "checksum", "Adler-32", "text", "IEND"])
def test_a_changed_byte_of_a_png_is_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.asarray(picture()))
    data = bytearray(path.read_bytes())
    text = b"tEXtcomment\0abc"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    data[33:33] = chunk
    path.write_bytes(data)
    read_rgb(path)
    offset, length, _ = [entry for entry in chunks(data) if entry[2] == b"IDAT"][-1]
    at = {
        "last content": offset + 8 + length - 9,
        "checksum": offset + 8 + length + 1,
        "Adler-32": offset + 8 + length - 1,
        "text": 45,
        "IEND": len(data) - 1,
    }[place]
    data[at] ^= 4
    if place == "Adler-32":  # with a checksum of the chunk that holds
        end = offset + 8 + length
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[offset + 4 : end]))
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: broken image"):
        read_rgb(path)


@pytest.mark.parametrize("options", [{}, {"tile_size": (64, 64)}, {"irreversible": True}])
def test_foreign_bytes_in_a_tile_of_a_j2k(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.j2k"
    picture().save(path, "JPEG2000", no_jp2=True, **options)
    read_rgb(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.j2k: broken image \(tile \d+ is damaged"):
        read_rgb(path)


def test_a_missing_part_of_a_tile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.j2k"
    picture().save(path, "JPEG2000", no_jp2=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x90\x00\x0a")
    assert data[at + 11] in (0, 1)
    data[at + 11] = 2
    path.write_bytes(data)
    with pytest.raises(InputError, match="1 of 2 parts of tile 0"):
        read_rgb(path)
