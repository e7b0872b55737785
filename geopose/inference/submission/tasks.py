"""What a submission has to do: the test split and what its folder knows in, tasks out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.data.image_size import image_size
from geopose.data.layout import ImageRecord, viz_name
from geopose.data.rgb import open_image
from geopose.errors import GeoposeError, InputError
from geopose.files.stamp import SourceStamp
from geopose.inference.pipeline.task import Part, Plan
from geopose.inference.resume.again import Finished
from geopose.inference.resume.settings import fingerprint
from geopose.inference.submission.folder import SubmissionFolder
from geopose.output.writer import output_names
from geopose.system.cores import in_order


@dataclass(frozen=True)
class Read:
    """An image read, as the outputs need it.

    Attributes:
        task: the image.
        rgb: H x W x 3.
        source: stamp of its file.
        unknown: H x W, where the file declares that it has no data; None = nowhere.
    """

    task: "ImageTask"
    rgb: NDArray[np.uint8]
    source: SourceStamp
    unknown: NDArray[np.bool_] | None


@dataclass(frozen=True)
class ImageTask:
    """One image to do, as a whole: all of it, or only the picture of a prediction that is kept."""

    record: ImageRecord
    predict: bool
    size: tuple[int, int]  # height, width from the file's header; (0, 0) if that is unreadable

    parts = 1

    @property
    def name(self) -> str:
        """The image's file name as listed."""
        return self.record.rgb.name

    def read(self, number: int) -> Part:
        """The image; see `Task`."""
        path = self.record.rgb_file()
        try:
            source = SourceStamp.of_file(path)
            pixels, unknown = open_image(path, self.record.rgb)
            image = Read(self, pixels[:, :], source, unknown)
            return Part(self, number, image.rgb, self.record.gsd_m, more=image)
        except GeoposeError as error:
            return Part(self, number, None, problem=str(error))
        except OSError as error:
            return Part(self, number, None, problem=f"cannot read {path}: {error.strerror}")


def make_plan(
    images: Sequence[ImageRecord], finished: Finished, folder: SubmissionFolder, visualize: bool
) -> Plan:
    """Decides what to do with every image; reads all finished predictions once, writes nothing.

    Args:
        images: the test split.
        finished: what is known, and the settings of this run.
        folder: where predictions and pictures are.
        visualize: whether every image needs a picture.
    """

    def examine(image: ImageRecord) -> tuple[ImageRecord, str, tuple[int, int]]:
        name = image.rgb.name
        reason = finished.why_again(name, image.rgb_file(), image.gsd_m, output_names(name))
        return image, reason, _size(image.rgb_file())

    tasks: list[ImageTask] = []
    reasons: Counter[str] = Counter()
    for image, reason, size in in_order(examine, images):
        if not reason:
            finished.seen(image.rgb.name, image.rgb_file())
        if reason:
            reasons[reason] += 1
            tasks.append(ImageTask(image, True, size))
        elif visualize and not (folder.pictures / viz_name(image.rgb.name)).is_file():
            tasks.append(ImageTask(image, False, size))
    tasks.sort(key=lambda task: (task.size != (0, 0), -task.size[0] * task.size[1]))
    return Plan(
        tuple(tasks),
        len(images),
        len(images) - sum(reasons.values()),
        finished.settings,
        fingerprint(finished.settings),
        tuple(reasons.items()),
    )


def _size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except InputError:  # reading it will say what is wrong, with the image's name
        return 0, 0
