"""PNG files as a row of chunks: text that is added, checksums that are compared.

In: the bytes of a file. Chunk layout: ISO/IEC 15948, chapter 5.
"""

import struct
import zlib

_HEADER_END = 33  # signature and the IHDR chunk, which is always the first


def with_text(data: bytes, keyword: bytes, text: bytes) -> bytes:
    """The same image with a tEXt chunk behind its header; both in Latin-1."""
    content = b"tEXt" + keyword + b"\0" + text
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:_HEADER_END] + chunk + data[_HEADER_END:]


def check_chunks(data: bytes) -> None:
    """Walks the chunks to the last one and compares their checksums.

    Decoders stop reading when they have all pixels, and so miss damage near the end. The checksum
    of the pixels inside the chunks is the decoder's business.

    Raises:
        ValueError: the file is cut, or a chunk is not what its checksum says.
    """
    offset, kind = 8, b""
    view = memoryview(data)
    while kind != b"IEND":
        if offset + 12 > len(data):
            raise ValueError("truncated")
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        if end + 4 > len(data):
            raise ValueError("truncated")
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(view[offset + 4 : end]):
            name = kind.decode("ascii", "replace")
            raise ValueError(f"the checksum of its {name} chunk at byte {offset} does not hold")
        offset = end + 4
