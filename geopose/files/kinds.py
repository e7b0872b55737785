"""What a file is by its first bytes, where it is not what its name says: told with the remedy."""

import re
from pathlib import Path

from geopose.files.ordinary import check_ordinary

_HEAD_BYTES = 1024
_PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip", b"Rar!\x1a\x07": "RAR",
}  # fmt: skip
_OTHERS = {
    b"\x89PNG\r\n": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture",
    b"II*\0": "a TIFF picture", b"MM\0*": "a TIFF picture", b"\0\0\0\x0cjP": "a JPEG 2000 picture",
    b"\xffO\xffQ": "a JPEG 2000 picture", b"%PDF": "a PDF document", b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file", b"\x7fELF": "a program",
}  # fmt: skip
_ZIP, _PICKLE = b"PK\3\4", b"\x80"
_PROTOCOLS = (b"\x80\x04", b"\x80\x05")
_PAGE = re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE)
_LFS = b"version https://git-lfs.github.com/spec/"


def foreign_kind(path: Path, suffix: str | None = None) -> str:
    """What a file is that no checkpoint can be, and what to do; empty if it may be one.

    Args:
        path: the file.
        suffix: what it should be; None = as its name ends.

    Raises:
        OSError: it cannot be read.
    """
    check_ordinary(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    wanted = path.suffix if suffix is None else suffix
    size = path.stat().st_size
    # First, for it begins with the length of its header, which may look like anything's beginning.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= size:
        if wanted in (".safetensors", ".int8"):
            return ""
        return "is a safetensors file; give it a name that ends with .safetensors"
    return _anything_but(head) or _under_another_name(head, wanted)


def _anything_but(head: bytes) -> str:
    if not head:
        return "is empty; copy or download it again"
    if _PAGE.match(head):
        return "is a web page; download the file that the page offers"
    if head.startswith(_LFS):
        return "is git-lfs's pointer to the file; run `git lfs pull`, or download the file itself"
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"is compressed by {name}; unpack it first"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return f"is {name}; check the path"
    if head.startswith(_PROTOCOLS):
        return (
            "is pickled by protocol 4 or later, which is not read; save it again by torch.save "
            "with its default pickle_protocol"
        )
    return "is a text file; copy or download the checkpoint again" if _is_text(head) else ""


def _is_text(head: bytes) -> bool:
    """As error messages of servers and configs are; a pickle of protocol 0 begins otherwise."""
    if head[:1] not in b"{[<#" and b"\n" not in head:
        return False
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text) and not (
        text.startswith(("(", "c", "}", "]")) or text.endswith(".")
    )


def _under_another_name(head: bytes, wanted: str) -> str:
    is_torch = head.startswith((_ZIP, _PICKLE))
    if is_torch and wanted in (".safetensors", ".int8", ".onnx"):
        return "is a file of torch.save; give it a name that ends with .pth"
    is_onnx = head[:1] == b"\x08" and b"\x12" in head[2:3] and b"pytorch" in head
    if is_onnx and wanted != ".onnx":
        return "is an ONNX file; give it a name that ends with .onnx"
    return ""
