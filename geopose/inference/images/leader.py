"""Anyone's images as a job: files in, products of each and one page of all out."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geopose import __version__
from geopose.errors import InputError
from geopose.files.atomic import partial_files
from geopose.files.lock import FolderLock
from geopose.files.writable import check_folder_target
from geopose.inference.build import build_ensemble
from geopose.inference.config import InferenceConfig
from geopose.inference.images.outputs import ImageOutputs
from geopose.inference.images.products import ProductChoice
from geopose.inference.images.source import ImageOptions, ImageTask, open_task, with_colours
from geopose.inference.leader import Leader
from geopose.inference.pipeline.task import Outputs, Plan
from geopose.inference.predict.ensemble import PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.inference.resume.again import Finished
from geopose.inference.resume.manifest import Journal
from geopose.inference.resume.settings import fingerprint
from geopose.products.selection import PAGE_FOLDER

logger = logging.getLogger(__name__)

MAX_WARNED = 3  # images whose warnings of one kind are shown


@dataclass(frozen=True)
class ImagesJob:
    """A run over images; see `Job`.

    Attributes:
        config: models and views; its `submission_dir` is the folder of the products.
        images: files by the name of their products.
        options: what the user says of the images.
        products: which, and how.
        flow: which one is used, see `flows.choose`.
        local_flow: also the flow of each tile.
        range_m: ground sampling that the models know; None = any.
        model_words: what the models are, for tags and page.
        force: predict everything anew.
        ready: the models, where they are loaded already; not for other processes.
    """

    config: InferenceConfig
    images: Mapping[str, Path]
    options: ImageOptions
    products: ProductChoice
    flow: str
    local_flow: bool
    range_m: tuple[float, float] | None
    model_words: str
    force: bool = False
    ready: PoseEnsemble | None = None

    def leader(self, device: torch.device) -> "ImagesLeader":
        """Of this run."""
        return ImagesLeader(self, device)

    def ensemble(self, device: torch.device, pixels: int) -> PoseEnsemble:
        """The config's models."""
        if self.ready is not None:
            return self.ready
        return build_ensemble(self.config, device, pixels)

    def outputs(self, plan: Plan, process: int) -> Outputs:
        """Of one process."""
        folder = self.config.submission_dir
        views = len(Tta.from_name(self.config.tta).views) * len(self.config.models)
        facts = {
            "model": self.model_words,
            "views": f"{self.config.tta or 'one view'}, {len(self.config.models)} models",
            "version": __version__,
        }
        return ImageOutputs(
            folder,
            plan.fingerprint,
            Journal(folder, process),
            self.products.writer(folder),
            self.flow,
            self.options.sensor is not None,
            self.local_flow,
            self.products.wants_uncertainty and views > 1,
            facts,
        )


class ImagesLeader(Leader):
    """What one process does for all images of a run."""

    def __init__(self, job: ImagesJob, device: torch.device) -> None:
        folder = job.config.submission_dir
        super().__init__(job.config, device, folder, folder, job.force)
        self._job = job

    def check(self) -> None:
        """Whether the products can be written."""
        check_folder_target(self.root, "--out")

    def extra_settings(self) -> dict[str, Any]:
        """What the user says of the images, and of their products."""
        options = self._job.options
        return {
            "gsd": options.gsd_m,
            "native_gsd": options.native_gsd,
            "bands": None if options.bands is None else ",".join(map(str, options.bands)),
            "stretch": f"{options.stretch.kind} {options.stretch.low:g} {options.stretch.high:g}",
            "nodata": options.nodata,
            "sensor": None if options.sensor is None else "{:g},{:g}".format(*options.sensor),
            "ground": None if options.ground is None else str(options.ground),
            "tile": f"{options.tile_px} {options.overlap_px}",
            "flow": self._job.flow,
            "local_flow": self._job.local_flow,
            "products": self._job.products.words,
        }

    def make_plan(self, finished: Finished) -> Plan:
        """See `Leader`. Images that cannot be used are tasks that fail, unless all of them are."""
        tasks, reasons = [], Counter[str]()
        for name, path in self._job.images.items():
            task = open_task(path, name, self._job.options, self._job.range_m)
            reason = finished.why_again(name, path, task.gsd_m)
            if not reason:
                finished.seen(name, path)
                continue
            reasons[reason] += 1
            tasks.append(with_colours(task, self._job.options))
        if tasks and len(tasks) == len(self._job.images) and all(t.problem for t in tasks):
            more = f" (and {len(tasks) - 1} more images cannot be used)" if len(tasks) > 1 else ""
            raise InputError(f"{tasks[0].problem}{more}")
        self._warn(tasks)
        tasks.sort(key=lambda task: (task.size != (0, 0), -task.parts * task.size[0]))
        return Plan(
            tuple(tasks),
            len(self._job.images),
            len(self._job.images) - len(tasks),
            finished.settings,
            fingerprint(finished.settings),
            tuple(reasons.items()),
        )

    def _warn(self, tasks: Sequence[ImageTask]) -> None:
        warned = [(task, line) for task in tasks for line in task.warnings]
        for task, line in warned[:MAX_WARNED]:
            logger.warning("%s: %s", task.path, line)
        if len(warned) > MAX_WARNED:
            logger.warning("and %d more images alike; the page has all", len(warned) - MAX_WARNED)

    def make_folder(self, plan: Plan) -> FolderLock:
        """Removes what killed runs left."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.root, "--out")
            for folder in (self.root, self.root / PAGE_FOLDER):
                for path in partial_files(folder, ".*"):
                    path.unlink()
            return lock
        except OSError as error:
            raise InputError(f"--out: cannot write to {self.root}: {error.strerror}") from error

    def names(self) -> Sequence[str]:
        """Images go by the names of their products."""
        return list(self._job.images)

    def consequence(self, missing: Sequence[str]) -> str:
        """Each image stands for itself."""
        return "nothing of them is written"

    def conclude(self, plan: Plan, missing: Sequence[str]) -> tuple[Path, str]:
        """The page of all images that have products."""
        done = [name for name in self._job.images if name not in missing]
        failed = dict(pair for report in self.reports for pair in report.failed)
        reasons = {name: failed.get(name, "not done yet") for name in missing}
        return self._job.products.conclude(self.root, done, reasons)
