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
