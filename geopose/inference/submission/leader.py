"""A submission as a job: the test split in, an archive of exactly its predictions out.

If an image fails or a process is lost there is no archive; another run does the rest.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geopose.data.dataset import warn_unconverted
from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import CHALLENGE, read_split
from geopose.errors import RunError
from geopose.files.lock import FolderLock
from geopose.files.stamp import FileStamp
from geopose.inference.config import InferenceConfig
from geopose.inference.leader import Leader
from geopose.inference.pipeline.task import Outputs, Plan
from geopose.inference.resume.again import Finished
from geopose.inference.resume.manifest import Journal
from geopose.inference.submission.folder import SubmissionFolder
from geopose.inference.submission.outputs import SubmissionOutputs
from geopose.inference.submission.tasks import ImageTask, make_plan
from geopose.output.archive import members_fingerprint, write_archive
from geopose.output.writer import output_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a command's options choose.

    Attributes:
        data_dir: holds the test images.
        visualize: also write a picture of each image.
        force: predict everything anew.
        layout: of the data directory.
    """

    data_dir: Path
    visualize: bool = False
    force: bool = False
    layout: str = CHALLENGE


@dataclass(frozen=True)
class SubmissionJob:
    """One config's submission; see `Job`."""

    config: InferenceConfig
    options: RunOptions

    def leader(self, device: torch.device) -> "SubmissionLeader":
        """Of this run."""
        return SubmissionLeader(self.config, self.options, device)

    def outputs(self, plan: Plan, process: int) -> Outputs:
        """Of one process."""
        folder = SubmissionFolder(self.config.submission_dir)
        journal = Journal(folder.root, process)
        return SubmissionOutputs(folder, plan.fingerprint, journal, self.options.visualize)


class SubmissionLeader(Leader):
    """What one process does for all of a submission.

    Args:
        config: of the run.
        options: of the command.
        device: what the processes compute on.
    """

    def __init__(self, config: InferenceConfig, options: RunOptions, device: torch.device) -> None:
        self.folder = SubmissionFolder(config.submission_dir)
        super().__init__(config, device, self.folder.root, self.folder.predictions, options.force)
        self._options = options
        self._images: list[ImageRecord] = []

    def check(self) -> None:
        """Reads the test split."""
        self.folder.check(self._options.visualize)
        self._images = read_split(self._options.data_dir, "test", self._options.layout)

    def extra_settings(self) -> dict[str, Any]:
        """Nothing else changes a prediction."""
        return {}

    def make_plan(self, finished: Finished) -> Plan:
        """See `Leader`."""
        plan = make_plan(self._images, finished, self.folder, self._options.visualize)
        warn_unconverted([task.record for task in plan.tasks if isinstance(task, ImageTask)])
        return plan

    def make_folder(self, plan: Plan) -> FolderLock:
        """Removes an archive that does not hold what the folder will hold at the end."""
        if not self._archive_fits(plan):
            self.manifest.archive = None
        return self.folder.make(self._options.visualize, self.manifest.archive is not None)

    def names(self) -> Sequence[str]:
        """Images go by their file names."""
        return [image.rgb.name for image in self._images]

    def consequence(self, missing: Sequence[str]) -> str:
        """An archive holds all images or is not there."""
        return "no archive written"

    def conclude(self, plan: Plan, missing: Sequence[str]) -> tuple[Path, str]:
        """Packs the archive if nothing is missing, and the one that is there does not hold it."""
        if missing:
            raise RunError("images are missing")
        if self.manifest.archive is not None:
            return self.folder.archive, "archive kept, it holds the same files"
        stamps = self._stamps()
        others = {path.name for path in self.folder.predictions.iterdir()} - set(stamps)
        if others:
            logger.warning(
                "%d files in %s are not of this run and stay out of the archive",
                len(others), self.folder.predictions,
            )  # fmt: skip
        self.manifest.archive = write_archive(self.folder.archive, self.folder.predictions, stamps)
        self.manifest.packed = members_fingerprint(stamps)
        self.manifest.save()
        return self.folder.archive, "archive"

    def _archive_fits(self, plan: Plan) -> bool:
        """Whether the archive holds what the folder will hold at the end of this run."""
        if plan.predicts or self.manifest.archive is None:
            return False
        if self.manifest.packed != members_fingerprint(self._stamps()):
            return False
        try:
            return FileStamp.of_file(self.folder.archive) == self.manifest.archive
        except OSError:
            return False

    def _stamps(self) -> dict[str, FileStamp]:
        """The files of this run's images, and no others."""
        return {
            name: self.manifest.records[image].files[name]
            for image in self.names()
            for name in output_names(image)
        }
