"""Tells overwritten parts of a JPEG 2000 tile, which decoders turn into smears without a word.

In: the bytes of a code stream and where a tile-part lies. The coder never writes FF followed by
more than 8F, and markers in the data are 91 and 92. Zeros cannot be told from what it may write.
"""

import re
import struct

_SOD = 0xFF93
_FOREIGN = re.compile(rb"\xff[\x93-\xff]")


def check_packets(data: bytes, start: int, end: int, tile: int) -> None:
    """Looks for bytes that no coder writes.

    Args:
        data: the file.
        start: behind the tile-part's SOT segment.
        end: of the tile-part.
        tile: its number, for the message.

    Raises:
        ValueError: it is damaged.
        struct.error: it is cut.
    """
    offset = start
    while (marker := struct.unpack_from(">H", data, offset)[0]) != _SOD:
        if marker < 0xFF00 or offset >= end:
            raise ValueError(f"tile {tile} has no data")
        offset += 2 + struct.unpack_from(">H", data, offset + 2)[0]
    if found := _FOREIGN.search(data, offset + 2, end):
        raise ValueError(f"tile {tile} is damaged at byte {found.start()}")
