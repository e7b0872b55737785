"""Asks libjpeg what it has to complain about: it fills what is broken with grey and goes on.

In: the bytes of a JPEG file. None of the libraries that decode hands on these warnings; OpenCV lets
libjpeg write them to standard error, which is where they are caught.
"""

import os
import re
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import cv2
import numpy as np

_STDERR = 2
_EOI, _FILL = 0xD9, 0xFF
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # no stuffed byte, restart or filling
_CATCHING = threading.Lock()
# How libjpeg's warnings begin (jerror.h); what others write meanwhile is passed on.
_WARNINGS = (
    "Corrupt JPEG data",
    "Premature end of JPEG",
    "Invalid SOS parameters",
    "Inconsistent progression",
    "Unknown Adobe color transform",
    "Application transferred too",
    "Invalid component ID",
)


def check_jpeg(data: bytes) -> None:
    """Decodes a JPEG file, which must not make libjpeg complain.

    Raises:
        ValueError: with its complaint.
    """
    _check_end(data)
    with _CATCHING, tempfile.TemporaryFile() as caught:
        with _caught_stderr(caught):
            pixels = cv2.imdecode(
                np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            )
        caught.seek(0)
        lines = caught.read().decode(errors="replace").splitlines(keepends=True)
    complaints = [line.strip() for line in lines if line.startswith(_WARNINGS)]
    for line in lines:
        if not line.startswith(_WARNINGS):
            with suppress(OSError):
                os.write(_STDERR, line.encode())
    if complaints:
        raise ValueError(complaints[0])
    if pixels is None:
        raise ValueError("it cannot be decoded")


def _check_end(data: bytes) -> None:
    """Walks the markers to that of the end: libjpeg does not miss it if it has all its pixels."""
    offset = 2
    try:
        while data[offset + 1] != _EOI:
            if data[offset + 1] == _FILL:
                offset += 1
                continue
            offset += 2 + struct.unpack_from(">H", data, offset + 2)[0]
            found = _MARKER.search(data, offset)  # behind a segment, or behind a scan's pixels
            if found is None:
                raise ValueError("truncated, its end marker is missing")
            offset = found.start()
    except (IndexError, struct.error):
        raise ValueError("truncated, its end marker is missing") from None


@contextmanager
def _caught_stderr(caught: BinaryIO) -> Iterator[None]:
    """Sends what C libraries write to standard error to a file."""
    kept = os.dup(_STDERR)
    try:
        os.dup2(caught.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
