"""Why an image has to be predicted again, or that it need not be.

An image is kept if it was predicted with the same settings, its own file and ground sampling are
the same, and all that was written of it reads back as it was written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geopose.files.stamp import FileStamp
from geopose.inference.resume.manifest import Manifest
from geopose.inference.resume.settings import Settings, difference, fingerprint

_NEW = "not predicted yet"
_CHANGED_IMAGE = "whose image has changed"
_BROKEN = "whose files are not as they were written"
_OTHER = "made with other settings"


@dataclass(frozen=True)
class Finished:
    """What is known of finished images, held against what a run wants.

    Attributes:
        manifest: what is known; an empty one starts over.
        settings: of this run.
        folder: where the files of finished images are.
        models: names, for messages.
    """

    manifest: Manifest
    settings: Settings
    folder: Path
    models: Sequence[str] = ()

    def why_again(
        self, name: str, file: Path, gsd_m: float, outputs: Sequence[str] | None = None
    ) -> str:
        """Why an image cannot be kept; empty if it can.

        Args:
            name: that its record goes by.
            file: the image.
            gsd_m: as it is now.
            outputs: files that belong to it; None = those that its record names.
        """
        record = self.manifest.records.get(name)
        if record is None:
            return _NEW
        if record.settings != fingerprint(self.settings):
            old = self.manifest.settings.get(record.settings, {})
            return f"{_OTHER} ({difference(old, self.settings, self.models)})"
        try:
            if record.gsd_m != gsd_m or not record.source.fits(file):
                return _CHANGED_IMAGE
            names = record.files if outputs is None else outputs
            if any(FileStamp.of_file(self.folder / n) != record.files.get(n) for n in names):
                return _BROKEN
        except OSError:
            return _BROKEN
        return ""

    def seen(self, name: str, file: Path) -> None:
        """Notes that a kept image's file is still the one that was predicted."""
        self.manifest.records[name] = self.manifest.records[name].seen(file)
