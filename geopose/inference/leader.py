"""What one process of a run does for all: it decides what is to do, and packs what was done.

In: a config, a data directory, the reports of all processes. Out: a plan, at the end the archive.
If an image fails or a process is lost there is no archive; another run does the rest.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geopose.data.dataset import warn_unconverted
from geopose.data.layouts.splits import CHALLENGE, read_split
from geopose.errors import RunError
from geopose.files.lock import FolderLock
from geopose.files.stamp import FileStamp
from geopose.inference.build import numerics, say_calibrations
from geopose.inference.config import InferenceConfig, ModelEntry
from geopose.inference.engines.precision import warn_of_precision
from geopose.inference.submission.folder import SubmissionFolder
from geopose.inference.submission.manifest import Manifest
from geopose.inference.submission.plan import Plan, make_plan
from geopose.inference.submission.settings import KnownHashes, digests, hash_checkpoints
from geopose.inference.workers.coordinator import Coordinator, WorkReport
from geopose.output.archive import members_fingerprint, write_archive
from geopose.output.writer import output_names

logger = logging.getLogger(__name__)

MAX_NAMED = 3  # images in the final error; all of them are logged


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
class RunReport:
    """What a run did.

    Attributes:
        images: number of images of the test split.
        kept: how many of them were finished before.
        seconds: from the first image to the finished archive.
        archive: the file with all of them.
    """

    images: int
    kept: int
    seconds: float
    archive: Path


class Leader:
    """What one process of a run does for all: the plan, the folder, the archive.

    Args:
        config: of the run.
        options: of the command.
        device: what the processes compute on.
    """

    def __init__(self, config: InferenceConfig, options: RunOptions, device: torch.device) -> None:
        self.folder = SubmissionFolder(config.submission_dir)
        self._config = config
        self._options = options
        self._device = device
        self._manifest = Manifest(config.submission_dir)
        self._lock: FolderLock | None = None
        self._names: tuple[str, ...] = ()
        self._reports: list[WorkReport] = []
        self._started = time.perf_counter()

    def plan(self) -> Plan:
        """Decides what is to do; writes nothing.

        Raises:
            InputError: the data, the folder or a checkpoint file cannot be used.
        """
        self.folder.check(self._options.visualize)
        images = read_split(self._options.data_dir, "test", self._options.layout)
        self._names = tuple(image.rgb.name for image in images)
        warn_of_precision(self._config.precision, self._device)
        say_calibrations(self._config)
        known = Manifest.load(self.folder.root)
        files = [file for entry in self._config.models for file in entry.files]
        hashes = hash_checkpoints(files, known.hashes)
        settings = {
            "models": [_describe(entry, hashes) for entry in self._config.models],
            "tta": self._config.tta,
            "tta_mode": self._config.tta_mode,
            **numerics(self._config, self._device),
        }
        if not self._options.force:
            self._manifest = known
        self._manifest.hashes = hashes
        names = ["+".join(file.name for file in entry.files) for entry in self._config.models]
        plan = make_plan(
            images, self._manifest, self.folder, settings, self._options.visualize, names
        )
        warn_unconverted([task.record for task in plan.tasks])
        return plan

    def start(self, plan: Plan, coordinator: Coordinator) -> None:
        """Makes the folder ready, once a process is ready to fill it.

        Raises:
            GeoposeError: no process could load its models, or the folder cannot be written to.
        """
        if plan.tasks:
            coordinator.await_ready()
        logger.info("%s", plan.summary())
        if not self._archive_fits(plan):
            self._manifest.archive = None
        keep_archive = self._manifest.archive is not None
        self._lock = self.folder.make(self._options.visualize, keep_archive)
        for task in plan.tasks:
            record = self._manifest.records.get(task.record.rgb.name)
            if task.predict and record is not None and record.settings == plan.fingerprint:
                del self._manifest.records[task.record.rgb.name]  # it was found not to hold
        self._manifest.settings[plan.fingerprint] = plan.settings
        self._manifest.save()
        self._started = time.perf_counter()

    def wait(self, plan: Plan, coordinator: Coordinator) -> None:
        """Waits for all processes' reports."""
        self._reports = coordinator.reports() if plan.tasks else []

    def finish(self, plan: Plan, coordinator: Coordinator) -> RunReport:
        """Takes over what the processes noted; packs the archive if nothing is missing.

        Raises:
            RunError: images failed or are missing, or a process did not reach the end.
        """
        self._manifest.take_journals()
        self._manifest.save()
        problem = self._problem(plan)
        if self._missing(plan):
            raise RunError(problem)
        packed = self._pack()
        seconds = time.perf_counter() - self._started
        self._log_outcome(plan, coordinator, seconds, packed)
        if problem:
            raise RunError(f"{problem}; no prediction is missing, {self.folder.archive} is whole")
        return RunReport(plan.images, plan.kept, seconds, self.folder.archive)

    def close(self) -> None:
        """Lets other runs into the folder."""
        if self._lock is not None:
            self._lock.give_up()

    def _archive_fits(self, plan: Plan) -> bool:
        """Whether the archive holds what the folder will hold at the end of this run."""
        if plan.predicts or self._manifest.archive is None:
            return False
        if self._manifest.packed != members_fingerprint(self._stamps()):
            return False
        try:
            return FileStamp.of_file(self.folder.archive) == self._manifest.archive
        except OSError:
            return False

    def _stamps(self) -> dict[str, FileStamp]:
        """The files of this run's images, and no others."""
        return {
            name: self._manifest.records[image].files[name]
            for image in self._names
            for name in output_names(image)
        }

    def _missing(self, plan: Plan) -> list[str]:
        """Images of the test split that have no prediction with this run's settings."""
        records = self._manifest.records
        return [
            name
            for name in self._names
            if name not in records or records[name].settings != plan.fingerprint
        ]

    def _problem(self, plan: Plan) -> str:
        """One line for the user about all that went wrong; empty if nothing did."""
        failed = dict(sorted(pair for report in self._reports for pair in report.failed))
        unfinished = self._missing(plan)
        nothing = ", no archive written" if unfinished else ""
        parts = []
        if failed:
            named = named_and_more(list(failed.values()))
            parts.append(
                f"{len(failed)} of {plan.images} images failed{nothing} (the others are in "
                f"{self.folder.predictions}): {named}"
            )
        parts += [str(report.problem) for report in self._reports if report.problem is not None]
        missing = [name for name in unfinished if name not in failed]
        if missing:
            parts.append(
                f"{len(missing)} of {plan.images} images are missing, no archive written: "
                f"{named_and_more(missing)}; run again to do only these"
            )
        return "; ".join(parts)

    def _pack(self) -> bool:
        """Archive of exactly this run's files; False if the one that is there holds them."""
        if self._manifest.archive is not None:
            return False
        stamps = self._stamps()
        others = {path.name for path in self.folder.predictions.iterdir()} - set(stamps)
        if others:
            logger.warning(
                "%d files in %s are not of this run and stay out of the archive",
                len(others), self.folder.predictions,
            )  # fmt: skip
        self._manifest.archive = write_archive(self.folder.archive, self.folder.predictions, stamps)
        self._manifest.packed = members_fingerprint(stamps)
        self._manifest.save()
        return True

    def _log_outcome(
        self, plan: Plan, coordinator: Coordinator, seconds: float, packed: bool
    ) -> None:
        predicted = sum(report.predicted for report in self._reports)
        if predicted:
            work_s = sum(report.work_s for report in self._reports)
            waits = [
                100.0 * sum(values) / work_s
                for values in (
                    [report.input_wait_s for report in self._reports],
                    [report.output_wait_s for report in self._reports],
                )
            ]
            logger.info(
                "%d image%s in %.1f s (%.2f s each, %s, %d process%s on %s); the models waited "
                "%.1f %% of the time for input, %.1f %% for output",
                predicted, "" if predicted == 1 else "s", seconds, seconds / predicted,
                " by ".join(numerics(self._config, self._device).values()), coordinator.size,
                "" if coordinator.size == 1 else "es", self._device.type, *waits,
            )  # fmt: skip
        state = "archive" if packed else "archive kept, it holds the same files"
        logger.info("%s: %s", state, self.folder.archive)


def _describe(entry: ModelEntry, hashes: KnownHashes) -> dict[str, Any]:
    """A model by its content, not its name, as it stands in a run's settings."""
    described = {"sha256": digests(entry.files, hashes), "downsample": entry.downsample}
    if entry.network is not None:
        described["network"] = [entry.network.text, entry.network.order]
    return described


def named_and_more(lines: Sequence[str]) -> str:
    """The first of some lines, and how many more there are; all of them go to the log then."""
    if len(lines) <= MAX_NAMED:
        return "; ".join(lines)
    for line in lines:
        logger.error("%s", line)
    return f"{'; '.join(lines[:MAX_NAMED])}; and {len(lines) - MAX_NAMED} more, listed above"
