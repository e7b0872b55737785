"""What a converted file was made of, noted in it, so that a replaced source is found out.

In: a source and what was made of it. Out: whether they still belong together. A time alone does not
tell: a file put there by `cp -p`, rsync or tar may be older than what was made of its predecessor.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from geopose.errors import InputError
from geopose.files.stamp import FileStamp

logger = logging.getLogger(__name__)

_MARK = re.compile(rb"#from:([0-9a-f]{1,16})\.([0-9a-f]{8})\.([0-9a-f]{1,16})")
_SEARCHED_BYTES = 256  # a mark is near the beginning, before any pixel
_TIME_MASK = 2**64 - 1
_read: dict[tuple[str, int, int, int], FileStamp] = {}  # by path, size and times
_said: set[str] = set()


@dataclass(frozen=True)
class Origin:
    """A source as it was when something was made of it.

    Attributes:
        stamp: size and CRC-32.
        mtime_ns: its time of change.
    """

    stamp: FileStamp
    mtime_ns: int

    @staticmethod
    def of_file(source: Path) -> "Origin":
        """Reads a source in full.

        Raises:
            InputError: it cannot be read.
        """
        try:
            mtime_ns = source.stat().st_mtime_ns
            return Origin(FileStamp.of_file(source), mtime_ns)
        except OSError as error:
            raise InputError(f"cannot read {source}: {error.strerror}; check the path") from error

    def check_unchanged(self, source: Path) -> None:
        """After pixels were read of a source: InputError if that is another file by now."""
        if Origin.of_file(source) != self:
            raise InputError(f"{source}: it changed while it was converted; run this again")

    @property
    def mark(self) -> bytes:
        """What is written into the converted file."""
        time = self.mtime_ns & _TIME_MASK
        return f"#from:{self.stamp.size:x}.{self.stamp.crc32:08x}.{time:x}".encode()


def read_origin(converted: Path) -> Origin | None:
    """What a converted file says of its source; None if it says nothing, as those of old."""
    with converted.open("rb") as file:
        found = _MARK.search(file.read(_SEARCHED_BYTES))
    if found is None:
        return None
    size, crc32, mtime_ns = (int(part, 16) for part in found.groups())
    return Origin(FileStamp(size, crc32), mtime_ns)


def is_up_to_date(converted: Path, source: Path) -> bool:
    """Whether a converted file is there, and its source is still what it was made of.

    The converted file may also be there alone. One that does not say what it was made of counts
    unless it is older than its source. The source is read only where its size fits and its times
    cannot vouch for it; the answer is then noted in the times of the converted file.
    """
    if not converted.is_file():
        return False
    if not source.is_file():
        return True
    try:
        made, now = converted.stat(), source.stat()
        origin = read_origin(converted)
        if made.st_mtime_ns < now.st_mtime_ns:
            return False
        if origin is None:
            return True
        if origin.stamp.size != now.st_size:
            return False
        known = (origin.mtime_ns, made.st_mtime_ns & _TIME_MASK)
        # Nobody can set the time at which a file's entry changed: a source whose entry is older
        # than the converted file's has not been replaced since.
        if now.st_mtime_ns & _TIME_MASK in known and now.st_ctime_ns < made.st_ctime_ns:
            return True
        if _stamp(source, now) != origin.stamp:
            return False
    except OSError:  # not readable: the source's own error is what the user should see
        return False
    _note(converted, made, now)
    return True


def _stamp(source: Path, facts: os.stat_result) -> FileStamp:
    """Size and CRC-32 of a source, read once in a process unless it changes."""
    key = (str(source.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if key not in _read:
        _say(
            "%s and what was made of it were copied or touched: such files are compared by their "
            "content, once",
            source,
        )
        _read[key] = FileStamp.of_file(source)
    return _read[key]


def _note(converted: Path, made: os.stat_result, now: os.stat_result) -> None:
    """Gives a converted file its source's time, so that the source need not be read again."""
    try:
        os.utime(converted, ns=(made.st_atime_ns, now.st_mtime_ns))
    except OSError as error:
        _say(
            "%s: its times cannot be set (%s), so its source is read whenever a run starts; let "
            "the owner run convert_j2k.py once",
            converted,
            error.strerror,
        )


def _say(message: str, *values: object) -> None:
    """A line of the log, once in a process."""
    if message not in _said:
        _said.add(message)
        logger.info(message, *values)
