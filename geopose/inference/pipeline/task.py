"""What goes through the pipeline: images of a run, in one part or as tiles, and what takes results.

A task is one image. Its parts go through the models one by one; an image of a submission has one
part, all of itself, and a large image has many, its tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from geopose.inference.predict.tta import Prediction


@dataclass(frozen=True)
class Part:
    """One part of an image, read.

    Attributes:
        task: the image.
        number: of the part in it, from 0.
        rgb: H x W x 3 as the models see it; None = there is nothing to predict here.
        gsd_m: metres of ground per pixel of `rgb`.
        problem: why the image cannot be read; "" = it can.
        more: what the reader found that the outputs need.
    """

    task: "Task"
    number: int
    rgb: NDArray[np.uint8] | None
    gsd_m: float = 0.0
    problem: str = ""
    more: Any = None


class Task(Protocol):
    """One image to do. It is pickled: parts are read in processes of their own."""

    @property
    def name(self) -> str:
        """The image, for messages and records."""

    @property
    def predict(self) -> bool:
        """Whether the models are needed, or only what a finished prediction is drawn to."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its largest part; (0, 0) = unreadable."""

    @property
    def parts(self) -> int:
        """How many there are, at least one."""

    def read(self, number: int) -> Part:
        """One part. What is wrong with the file is in the part's `problem`, nothing is raised."""


class Outputs(Protocol):
    """Takes what was predicted; called from several threads, but for `begin` and `fields`."""

    def skips(self, part: Part) -> bool:
        """Whether this part need not be predicted, as another one of its image has failed."""

    @property
    def wants_spread(self) -> bool:
        """Whether `fields` is to be told how far views and models differ."""

    def fields(self, prediction: Prediction, spread_m: Tensor | None) -> list[Tensor]:
        """What is needed of a batch's prediction, on its device; the first axis counts images.

        Computed without waiting for the device.

        Args:
            prediction: of N parts.
            spread_m: N x 1 x H x W standard deviation of heights, if it is wanted.
        """

    def write(self, part: Part, fields: Sequence[Tensor]) -> bool:
        """Takes one part; True = its image is finished.

        Args:
            part: as read; without `rgb` there are no fields.
            fields: of this part, in main memory.

        Raises:
            StorageError: the image cannot be stored; nothing is left of it, others go on.
            RunError: nothing can be written.
        """

    def draw(self, part: Part) -> None:
        """What remains to do for a task that needs no prediction."""

    def fail(self, part: Part) -> None:
        """An image failed: nothing that an earlier run left of it stays."""


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        tasks: large images first, so that the end is not one process's alone and a lack of memory
            shows at once.
        images: how many there are in all.
        kept: how many of them are finished.
        settings: what the predictions follow from.
        fingerprint: short name of the settings.
        why: the number of images to predict for each reason.
    """

    tasks: tuple[Task, ...]
    images: int
    kept: int
    settings: dict[str, Any]
    fingerprint: str
    why: tuple[tuple[str, int], ...]

    @property
    def predicts(self) -> bool:
        """Whether any image needs the models."""
        return any(task.predict for task in self.tasks)

    @property
    def pixels(self) -> int:
        """Of all images that the models see."""
        return sum(t.parts * t.size[0] * t.size[1] for t in self.tasks if t.predict)

    @property
    def parts(self) -> int:
        """Of all tasks."""
        return sum(task.parts for task in self.tasks)

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
