"""What one process of a run does for all: it decides what is to do, and finishes what was done.

In: a config, a job, the reports of all processes. Out: a plan, at the end what the job makes of all
images. What images there are, and what is made of them, is the job's.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geopose.errors import RunError
from geopose.files.lock import FolderLock
from geopose.inference.build import numerics, say_calibrations
from geopose.inference.config import InferenceConfig, ModelEntry
from geopose.inference.engines.precision import warn_of_precision
from geopose.inference.pipeline.task import Plan
from geopose.inference.predict.unknown_gsd import UnknownGsds
from geopose.inference.resume.again import Finished
from geopose.inference.resume.manifest import Manifest
from geopose.inference.resume.settings import KnownHashes, digests, hash_checkpoints
from geopose.inference.workers.coordinator import Coordinator, WorkReport

logger = logging.getLogger(__name__)

MAX_NAMED = 3  # images in the final error; all of them are logged


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        images: number of images in all.
        kept: how many of them were finished before.
        seconds: from the first image to the last file.
        result: the file or folder that holds what was made.
    """

    images: int
    kept: int
    seconds: float
    result: Path


class Leader(ABC):
    """Plans, starts and finishes a run.

    Args:
        config: of the run.
        device: what the processes compute on.
        root: folder of what is written, with the manifest.
        files: where the files of finished images are.
        force: predict everything anew.
    """

    def __init__(
        self, config: InferenceConfig, device: torch.device, root: Path, files: Path, force: bool
    ) -> None:
        self.config = config
        self.root = root
        self.manifest = Manifest(root)
        self.reports: list[WorkReport] = []
        self._device = device
        self._files = files
        self._force = force
        self._lock: FolderLock | None = None
        self._started = time.perf_counter()

    # ------------------------------------------------------------ what a job is about

    @abstractmethod
    def check(self) -> None:
        """Raises InputError if what the run needs is not there, or nothing can be written."""

    @abstractmethod
    def extra_settings(self) -> dict[str, Any]:
        """What the results follow from beside models, views and precision."""

    @abstractmethod
    def make_plan(self, finished: Finished) -> Plan:
        """What is to do."""

    @abstractmethod
    def make_folder(self, plan: Plan) -> FolderLock:
        """Makes the folders, and keeps other runs out of them."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """What the records of all images go by."""

    @abstractmethod
    def conclude(self, plan: Plan, missing: Sequence[str]) -> tuple[Path, str]:
        """Makes what is made of all images; (where it is, words about it for the log).

        Args:
            plan: of the run.
            missing: images without a result.

        Raises:
            RunError: it cannot be made while images are missing; `problem` has the words.
        """

    @abstractmethod
    def consequence(self, missing: Sequence[str]) -> str:
        """What it means for the result that images are missing, such as "no archive written"."""

    # ------------------------------------------------------------ the run

    def plan(self) -> Plan:
        """Decides what is to do; writes nothing.

        Raises:
            InputError: the data, the folder or a checkpoint file cannot be used.
        """
        self.check()
        warn_of_precision(self.config.precision, self._device)
        say_calibrations(self.config)
        known = Manifest.load(self.root)
        files = [file for entry in self.config.models for file in entry.files]
        hashes = hash_checkpoints(files, known.hashes)
        settings = {
            "models": [_describe(entry, hashes) for entry in self.config.models],
            "tta": self.config.tta,
            "tta_mode": self.config.tta_mode,
            **numerics(self.config, self._device),
            **self.extra_settings(),
        }
        if not self._force:
            self.manifest = known
        self.manifest.hashes = hashes
        names = ["+".join(file.name for file in entry.files) for entry in self.config.models]
        return self.make_plan(Finished(self.manifest, settings, self._files, names))

    def start(self, plan: Plan, coordinator: Coordinator) -> None:
        """Makes the folder ready, once a process is ready to fill it.

        Raises:
            GeoposeError: no process could load its models, or the folder cannot be written to.
        """
        if plan.tasks:
            coordinator.await_ready()
        logger.info("%s", plan.summary())
        self._lock = self.make_folder(plan)
        for task in plan.tasks:
            record = self.manifest.records.get(task.name)
            if task.predict and record is not None and record.settings == plan.fingerprint:
                del self.manifest.records[task.name]  # it was found not to hold
        self.manifest.settings[plan.fingerprint] = plan.settings
        self.manifest.save()
        self._started = time.perf_counter()

    def wait(self, plan: Plan, coordinator: Coordinator) -> None:
        """Waits for all processes' reports."""
        self.reports = coordinator.reports() if plan.tasks else []

    def finish(self, plan: Plan, coordinator: Coordinator) -> RunReport:
        """Takes over what the processes noted, and concludes.

        Raises:
            RunError: images failed or are missing, or a process did not reach the end.
        """
        self.manifest.take_journals()
        self.manifest.save()
        missing = self._missing(plan)
        problem = self._problem(plan, missing)
        self._warn_of_gsds()
        try:
            result, words = self.conclude(plan, missing)
        except RunError as error:
            raise RunError(problem or str(error)) from error
        seconds = time.perf_counter() - self._started
        self._log_outcome(coordinator, seconds)
        logger.info("%s: %s", words, result)
        if problem:
            whole = "" if missing else f"; no prediction is missing, {result} is whole"
            raise RunError(f"{problem}{whole}")
        return RunReport(plan.images, plan.kept, seconds, result)

    def close(self) -> None:
        """Lets other runs into the folder."""
        if self._lock is not None:
            self._lock.give_up()

    def _missing(self, plan: Plan) -> list[str]:
        """Images that have no prediction with this run's settings."""
        records = self.manifest.records
        return [
            name
            for name in self.names()
            if name not in records or records[name].settings != plan.fingerprint
        ]

    def _problem(self, plan: Plan, unfinished: Sequence[str]) -> str:
        """One line for the user about all that went wrong; empty if nothing did."""
        failed = dict(sorted(pair for report in self.reports for pair in report.failed))
        consequence = f", {self.consequence(unfinished)}" if unfinished else ""
        parts = []
        if failed:
            named = named_and_more(list(failed.values()))
            parts.append(
                f"{len(failed)} of {plan.images} images failed{consequence} (the others are in "
                f"{self._files}): {named}"
            )
        parts += [str(report.problem) for report in self.reports if report.problem is not None]
        missing = [name for name in unfinished if name not in failed]
        if missing:
            parts.append(
                f"{len(missing)} of {plan.images} images are missing{consequence}: "
                f"{named_and_more(missing)}; run again to do only these"
            )
        return "; ".join(parts)

    def _warn_of_gsds(self) -> None:
        """Of the images that were predicted now; earlier runs have said theirs."""
        unknown = UnknownGsds()
        for report in self.reports:
            unknown.merge(report.unknown_gsds)
        for line in unknown.lines():
            logger.warning("%s", line)

    def _log_outcome(self, coordinator: Coordinator, seconds: float) -> None:
        predicted = sum(report.predicted for report in self.reports)
        if not predicted:
            return
        work_s = sum(report.work_s for report in self.reports)
        waits = [
            100.0 * sum(values) / work_s
            for values in (
                [report.input_wait_s for report in self.reports],
                [report.output_wait_s for report in self.reports],
            )
        ]
        logger.info(
            "%d image%s in %.1f s (%.2f s each, %s, %d process%s on %s); the models waited "
            "%.1f %% of the time for input, %.1f %% for output",
            predicted, "" if predicted == 1 else "s", seconds, seconds / predicted,
            " by ".join(numerics(self.config, self._device).values()), coordinator.size,
            "" if coordinator.size == 1 else "es", self._device.type, *waits,
        )  # fmt: skip


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
