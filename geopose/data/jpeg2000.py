"""Reads JPEG 2000 headers: what a file holds, and whether it is all there, before it is decoded.

In: the bytes of a raw code stream (.j2k) or a JP2 file. Out: a `Jp2Header`. The decoder itself
would accept 16-bit, grey, subsampled and absurdly large images; this says what they are.
Marker and box layouts: ISO/IEC 15444-1, annexes A and I.
"""

import struct
from collections import Counter
from dataclasses import dataclass

from geopose.data.formats.packets import check_packets

CODESTREAM_MAGIC = b"\xff\x4f\xff\x51"
JP2_MAGIC = b"\x00\x00\x00\x0cjP  \r\n\x87\n"

_SOT, _SOD, _EOC = 0xFF90, 0xFF93, 0xFFD9
_SRGB = 16
_SOT_BYTES = 12


@dataclass(frozen=True)
class Jp2Header:
    """Size and sample layout of a JPEG 2000 image."""

    height: int
    width: int
    bits: tuple[int, ...]  # per component
    signed: bool
    subsampled: bool
    tiles: int
    start: int  # offset of the code stream in the data
    colour: str  # "" when it is, or may be, RGB

    def problem(self) -> str:
        """What keeps this from being an 8-bit RGB image; empty when nothing does."""
        if self.height <= 0 or self.width <= 0:
            return f"an image of {self.width} x {self.height} pixels"
        if len(self.bits) != 3:
            return "1 channel" if len(self.bits) == 1 else f"{len(self.bits)} channels"
        if set(self.bits) != {8}:
            return f"{max(self.bits)}-bit samples"
        if self.signed:
            return "signed samples"
        if self.subsampled:
            return "subsampled channels"
        return self.colour


def read_header(data: bytes) -> Jp2Header:
    """Header of a code stream or JP2 file; `data` may be only its beginning.

    Raises:
        ValueError: not JPEG 2000, or the header is cut or contradicts itself.
    """
    try:
        if data.startswith(CODESTREAM_MAGIC):
            return _read_siz(data, 0, "")
        start, colour = _find_codestream(data)
        return _read_siz(data, start, colour)
    except struct.error:
        raise ValueError("its header is cut short") from None


def _find_codestream(data: bytes) -> tuple[int, str]:
    """Offset of the code stream in a JP2 file, and its colour problem if it has one."""
    colour = ""
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"jp2h":
            colour = _colour_problem(data, start, end)
        if kind == b"jp2c":
            return start, colour
    raise ValueError("the JP2 file holds no code stream")


def _boxes(data: bytes, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """(type, content start, content end) of the boxes between two offsets."""
    boxes = []
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        stop = end if length == 0 else start + length
        if stop < start + header:
            raise ValueError(f"box {kind!r} has length {length}")
        boxes.append((kind, start + header, min(stop, end)))
        start = stop
    return boxes


def _colour_problem(data: bytes, start: int, end: int) -> str:
    """Palettes and colour spaces other than RGB; ICC profiles are taken as RGB."""
    for kind, content, _ in _boxes(data, start, end):
        if kind == b"pclr":
            return "a palette"
        if kind == b"colr" and data[content] == 1:
            (space,) = struct.unpack_from(">I", data, content + 3)
            if space != _SRGB:
                return f"colour space {space} (not sRGB)"
    return ""


def _read_siz(data: bytes, start: int, colour: str) -> Jp2Header:
    """The SIZ segment, which the standard puts first in every code stream."""
    if data[start : start + 4] != CODESTREAM_MAGIC:
        raise ValueError("not a JPEG 2000 code stream")
    fields = struct.unpack_from(">HH8IH", data, start + 4)
    x1, y1, x0, y0, tile_w, tile_h, tile_x0, tile_y0 = fields[2:10]
    count = fields[10]
    parts = struct.unpack_from(f">{3 * count}B", data, start + 42)
    if fields[0] != 38 + 3 * count or min(tile_w, tile_h, x1 - x0, y1 - y0, count) < 1:
        raise ValueError("its header contradicts itself")
    across = -(-(x1 - tile_x0) // tile_w)
    down = -(-(y1 - tile_y0) // tile_h)
    return Jp2Header(
        height=y1 - y0,
        width=x1 - x0,
        bits=tuple((depth & 0x7F) + 1 for depth in parts[0::3]),
        signed=any(depth & 0x80 for depth in parts[0::3]),
        subsampled=any(step != 1 for step in (*parts[1::3], *parts[2::3])),
        tiles=across * down,
        start=start,
        colour=colour,
    )


def check_complete(data: bytes, header: Jp2Header) -> None:
    """Walks the tile-parts to the end marker, because decoders fill what is missing with grey.

    Raises:
        ValueError: the file is cut, or a tile is not in it.
    """
    try:
        offset = header.start + 2
        while (marker := struct.unpack_from(">H", data, offset)[0]) != _SOT:
            if marker < 0xFF00 or marker in (_SOD, _EOC):
                raise ValueError("no image data follows its header")
            offset += 2 + struct.unpack_from(">H", data, offset + 2)[0]
        seen: set[int] = set()
        parts, promised = Counter[int](), dict[int, int]()
        while (marker := struct.unpack_from(">H", data, offset)[0]) == _SOT:
            tile, length = struct.unpack_from(">HI", data, offset + 4)
            seen.add(tile)
            parts[tile] += 1
            promised[tile] = max(promised.get(tile, 0), data[offset + 11])  # 0: it does not say
            start = offset + _SOT_BYTES
            if length == 0:  # the last tile-part reaches to the end marker
                offset = data.rindex(b"\xff\xd9", offset)
            elif length < _SOT_BYTES + 2:
                raise ValueError("a tile has an impossible length")
            else:
                offset += length
            check_packets(data, start, min(offset, len(data)), tile)
        if marker != _EOC:
            raise ValueError("its tiles do not follow each other")
    except (struct.error, ValueError) as error:
        if isinstance(error, struct.error) or "subsection" in str(error):
            raise ValueError(f"truncated: {len(data)} bytes, more expected") from None
        raise
    if seen != set(range(header.tiles)):
        raise ValueError(f"{len(seen)} of {header.tiles} tiles are in it")
    if lost := [tile for tile, count in promised.items() if parts[tile] < count]:
        raise ValueError(
            f"{parts[lost[0]]} of {promised[lost[0]]} parts of tile {lost[0]} are in it"
        )
