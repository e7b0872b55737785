"""What a submission folder knows of its finished images, kept so that any crash leaves it usable.

`manifest.json` holds a record for each finished image, written whole. While a run goes on, every
process appends the records of its images to a journal of its own, one line each; a line that a
crash cut off is no record. The next run takes the journals' records over into the manifest.
"""

import json
import logging
import math
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geopose.errors import RunError, one_line
from geopose.files.atomic import atomic_path
from geopose.files.ordinary import check_ordinary
from geopose.files.stamp import FileStamp, SourceStamp
from geopose.inference.resume.settings import KnownHashes, Settings

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
_JOURNALS = "manifest.process-*.jsonl"
_FORMAT = 1
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, IndexError,
)  # fmt: skip
_LARGEST = 2**63


@dataclass(frozen=True)
class Record:
    """One finished image: what was predicted from, how, and what was written.

    Attributes:
        settings: fingerprint of the run's settings.
        source: the image file.
        gsd_m: its ground sampling, metres per pixel.
        files: what was written, by name.
    """

    settings: str
    source: SourceStamp
    gsd_m: float
    files: dict[str, FileStamp]

    def seen(self, file: Path) -> "Record":
        """The same record of an image whose file was found to be the one that was predicted."""
        try:
            return replace(self, source=self.source.with_times_of(file))
        except OSError:
            return self

    def to_json(self) -> dict[str, Any]:
        """As plain containers."""
        source = self.source
        return {
            "settings": self.settings,
            "source": [source.size, source.mtime_ns, source.crc32],
            "source_entry": source.ctime_ns,
            "gsd_m": self.gsd_m,
            "files": {name: [stamp.size, stamp.crc32] for name, stamp in self.files.items()},
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Record":
        """The reverse of `to_json`; one of `_MALFORMED` if it is none."""
        size, mtime_ns, crc32 = map(_whole, content["source"])
        gsd_m = float(content["gsd_m"])
        if not math.isfinite(gsd_m):
            raise ValueError(f"gsd {gsd_m}")
        return Record(
            str(content["settings"]),
            SourceStamp(size, mtime_ns, crc32, _whole(content.get("source_entry", 0))),
            gsd_m,
            {str(n): FileStamp(_whole(s), _whole(c)) for n, (s, c) in content["files"].items()},
        )


def _whole(value: Any) -> int:
    """A number of a stamp; 1e999 is none."""
    if type(value) is not int or abs(value) > _LARGEST:
        raise ValueError(f"{value!r:.20} where a whole number belongs")
    return value


def _digest(value: Any) -> str:
    """A SHA-256."""
    if not isinstance(value, str) or len(value) != 64:
        raise ValueError("a hash that is none")
    return value


@dataclass
class Manifest:
    """All that a submission folder knows.

    Attributes:
        folder: the submission folder.
        records: by the image's file name.
        settings: by fingerprint, those that records mention.
        hashes: of the checkpoint files, so that they are read only once.
        archive: what the archive file holds, None while there is none.
        packed: fingerprint of the members of the archive.
    """

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)
    settings: dict[str, Settings] = field(default_factory=dict)
    hashes: KnownHashes = field(default_factory=dict)
    archive: FileStamp | None = None
    packed: str = ""

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Reads manifest and journals; a damaged manifest counts as none, and is mentioned."""
        manifest = Manifest(folder)
        path = folder / MANIFEST_NAME
        try:
            check_ordinary(path)
            manifest._read(json.loads(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, *_MALFORMED) as error:
            reason = one_line(error, 100)
            logger.warning("%s cannot be used (%s); its images are predicted anew", path, reason)
            manifest = Manifest(folder)
        manifest.take_journals()
        return manifest

    def _read(self, content: dict[str, Any]) -> None:
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        self.records = {n: Record.from_json(record) for n, record in content["images"].items()}
        self.settings = {str(name): dict(value) for name, value in content["settings"].items()}
        self.hashes = {
            str(name): [*map(_whole, facts[:3]), _digest(facts[3])]
            for name, facts in content["checkpoints"].items()
        }
        if content["archive"] is not None:
            size, crc32, self.packed = content["archive"]
            self.archive = FileStamp(_whole(size), _whole(crc32))

    def take_journals(self) -> None:
        """Adds what the processes of a run noted since the manifest was written."""
        for journal in sorted(self.folder.glob(_JOURNALS)):
            if not journal.is_file():
                continue
            for line in journal.read_bytes().splitlines():
                try:
                    content = json.loads(line)
                    self.records[str(content["image"])] = Record.from_json(content)
                except _MALFORMED:  # cut off by a crash
                    continue

    def save(self) -> None:
        """Writes the manifest whole, then removes the journals, whose records are in it.

        Raises:
            RunError: it cannot be written.
        """
        used = {record.settings for record in self.records.values()}
        archive = self.archive and [self.archive.size, self.archive.crc32, self.packed]
        content = {
            "format": _FORMAT,
            "settings": {name: self.settings[name] for name in sorted(used & {*self.settings})},
            "checkpoints": self.hashes,
            "archive": archive,
            "images": {name: record.to_json() for name, record in sorted(self.records.items())},
        }
        with atomic_path(self.folder / MANIFEST_NAME) as partial:
            partial.write_text(json.dumps(content, indent=1))
        for journal in self.folder.glob(_JOURNALS):
            if not journal.is_dir():
                journal.unlink()


class Journal:
    """Where one process notes the images that it has finished; safe to use from several threads."""

    def __init__(self, folder: Path, process: int) -> None:
        self._path = folder / f"manifest.process-{process}.jsonl"
        self._lock = threading.Lock()

    def add(self, image: str, record: Record) -> None:
        """Notes an image whose files are in place.

        Raises:
            RunError: the journal cannot be written.
        """
        line = json.dumps({"image": image, **record.to_json()}) + "\n"
        try:
            with self._lock, self._path.open("a") as journal:
                journal.write(line)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror or error}") from error
