"""What a run has to do: the test split and what the submission folder knows in, tasks out.

An image is kept if it was predicted with the same settings, its own file and ground sampling are
the same, and both its predictions read back as they were written. Everything else is done again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geopose.data.image_size import image_size
from geopose.data.layout import ImageRecord, viz_name
from geopose.errors import InputError
from geopose.files.stamp import FileStamp
from geopose.inference.submission.folder import SubmissionFolder
from geopose.inference.submission.manifest import Manifest, Record
from geopose.inference.submission.settings import Settings, difference, fingerprint
from geopose.output.writer import output_names
from geopose.system.cores import in_order

_NEW = "not predicted yet"
_CHANGED_IMAGE = "whose image has changed"
_BROKEN = "whose files are not as they were written"
_OTHER = "made with other settings"


@dataclass(frozen=True)
class Task:
    """One image to do: all of it, or only the picture of a prediction that is kept."""

    record: ImageRecord
    predict: bool
    size: tuple[int, int]  # height, width from the file's header; (0, 0) if that is unreadable


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        tasks: large images first, so that the end is not one process's alone and a lack of memory
            shows at once.
        images: how many the test split has.
        kept: how many of them are finished.
        settings: what the predictions follow from.
        why: the number of images to predict for each reason.
    """

    tasks: tuple[Task, ...]
    images: int
    kept: int
    settings: Settings
    why: tuple[tuple[str, int], ...]

    @property
    def fingerprint(self) -> str:
        """Short name of the settings."""
        return fingerprint(self.settings)

    @property
    def predicts(self) -> bool:
        """Whether any image needs the models."""
        return any(task.predict for task in self.tasks)

    def summary(self) -> str:
        """One line: how many images are kept, how many are to do and why."""
        parts = [f"{self.kept} of {self.images} images are finished and kept"]
        count = self.images - self.kept
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.why)
        if count:
            parts.append(f"{count} to do: {reasons}" if self.kept or len(self.why) > 1 else reasons)
        pictures = sum(not task.predict for task in self.tasks)
        if pictures:
            parts.append(f"{pictures} pictures to draw")
        return "; ".join(parts)


def make_plan(
    images: Sequence[ImageRecord],
    manifest: Manifest,
    folder: SubmissionFolder,
    settings: Settings,
    visualize: bool,
    names: Sequence[str] = (),
) -> Plan:
    """Decides what to do with every image; reads all finished predictions once, writes nothing.

    Args:
        images: the test split.
        manifest: what is known; an empty one starts over.
        folder: where predictions and pictures are.
        settings: of this run.
        visualize: whether every image needs a picture.
        names: of the models, for messages.
    """
    wanted = fingerprint(settings)

    def examine(image: ImageRecord) -> tuple[ImageRecord, str, tuple[int, int]]:
        record = manifest.records.get(image.rgb.name)
        reason = why_again(image, record, wanted, folder.predictions)
        return image, reason, _size(image.rgb_file())

    tasks: list[Task] = []
    reasons: Counter[str] = Counter()
    for image, reason, size in in_order(examine, images):
        if reason == _OTHER:
            old = manifest.settings.get(manifest.records[image.rgb.name].settings, {})
            reason = f"{_OTHER} ({difference(old, settings, names)})"
        if not reason:
            manifest.records[image.rgb.name] = manifest.records[image.rgb.name].seen(image)
        if reason:
            reasons[reason] += 1
            tasks.append(Task(image, True, size))
        elif visualize and not (folder.pictures / viz_name(image.rgb.name)).is_file():
            tasks.append(Task(image, False, size))
    tasks.sort(key=lambda task: (task.size != (0, 0), -task.size[0] * task.size[1]))
    kept = len(images) - sum(reasons.values())
    return Plan(tuple(tasks), len(images), kept, settings, tuple(reasons.items()))


def why_again(image: ImageRecord, record: Record | None, wanted: str, folder: Path) -> str:
    """Why an image cannot be kept; empty if it can.

    Args:
        image: as listed now.
        record: what is known of its prediction.
        wanted: fingerprint of the settings.
        folder: of the predictions.
    """
    if record is None:
        return _NEW
    if record.settings != wanted:
        return _OTHER
    try:
        if record.gsd_m != image.gsd_m or not record.source.fits(image.rgb_file()):
            return _CHANGED_IMAGE
        names = output_names(image.rgb.name)
        if any(FileStamp.of_file(folder / name) != record.files.get(name) for name in names):
            return _BROKEN
    except OSError:
        return _BROKEN
    return ""


def _size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except InputError:  # reading it will say what is wrong, with the image's name
        return 0, 0
