"""A run of a job, the same for one process and for many: images in, what the job makes of them out.

Plan, load, predict each image, write, conclude. The leader decides what is to do, every process
does what it takes from the common list, the leader makes what is made of all.
"""

from contextlib import closing
from typing import Protocol

import torch

from geopose import distributed
from geopose.errors import GeoposeError, RunError
from geopose.inference.build import build_ensemble, numerics
from geopose.inference.config import InferenceConfig
from geopose.inference.leader import Leader, RunReport
from geopose.inference.pipeline.decode import Reader
from geopose.inference.pipeline.pipeline import Pipeline
from geopose.inference.pipeline.progress import Progress
from geopose.inference.pipeline.task import Outputs, Plan
from geopose.inference.predict.ensemble import PoseEnsemble
from geopose.inference.resume.settings import difference
from geopose.inference.workers.coordinator import Coordinator, WorkReport
from geopose.system.cores import usable_cores


class Job(Protocol):
    """What a run is about; pickled for the processes of a run."""

    @property
    def config(self) -> InferenceConfig:
        """Models, views, batch size."""

    def leader(self, device: torch.device) -> Leader:
        """What one process does for all."""

    def outputs(self, plan: Plan, process: int) -> Outputs:
        """What takes the results of one process."""


def run_inference(job: Job, coordinator: Coordinator | None = None) -> RunReport:
    """Predicts what is missing of a job's images and concludes it.

    Called on every process of a run with the same arguments. Nothing is written before the data,
    the folder and all models have been checked.

    Args:
        job: images and what becomes of them.
        coordinator: the processes; None: this one alone.

    Raises:
        InputError: data, a folder or a checkpoint that cannot be used.
        RunError: some images failed or are missing (all others are written), or the run broke.
    """
    coordinator = coordinator or Coordinator.alone()
    device = distributed.local_device()
    with closing(job.leader(device)) as leader:
        plan = coordinator.decide("plan", leader.plan)
        with closing(_Worker(job, plan, device, coordinator)) as worker:
            worker.load()
            coordinator.decide("start", lambda: leader.start(plan, coordinator))
            with Progress(coordinator, plan, coordinator.leads and bool(plan.tasks)):
                worker.predict_and_write()
                if coordinator.leads:
                    leader.wait(plan, coordinator)
        return coordinator.decide("outcome", lambda: leader.finish(plan, coordinator))


class _Worker:
    """This process's share of a run; nothing at all where it only leads or nothing is to do."""

    def __init__(
        self, job: Job, plan: Plan, device: torch.device, coordinator: Coordinator
    ) -> None:
        self._job, self._config, self._plan = job, job.config, plan
        self._device, self._coordinator = device, coordinator
        self._ensemble: PoseEnsemble | None = None
        self._reader: Reader | None = None
        if coordinator.rank is not None and plan.tasks:
            self._reader = Reader(self._decoders())  # before there is anything large to copy

    def _decoders(self) -> int:
        """Decoding processes: no more than this process's share of cores and of the work."""
        cores = max(1, usable_cores() // distributed.local_world_size())
        return min(self._config.num_workers, cores, -(-self._plan.parts // self._coordinator.size))

    def load(self) -> None:
        """Loads the models; a process that cannot says so, and the others do its share."""
        if self._reader is None:
            return
        try:
            self._ensemble = self._load()
            self._coordinator.say_ready()
        except GeoposeError as error:
            self.close()
            self._coordinator.report(WorkReport(problem=error))

    def _load(self) -> PoseEnsemble | None:
        """The models, if any image needs them, sure to compute as the leader's do."""
        if not self._plan.predicts:
            return None
        here = numerics(self._config, self._device)
        if differing := difference({key: self._plan.settings.get(key) for key in here}, here):
            raise RunError(
                f"{self._device} would compute otherwise than the first process ({differing}), and "
                "one archive must not mix both; choose the same in the config's inference section"
            )
        pixels = self._plan.pixels // self._coordinator.size
        return build_ensemble(self._config, self._device, pixels)

    def predict_and_write(self) -> None:
        """Does images until none is left, and reports."""
        if self._reader is None:
            return
        outputs = self._job.outputs(self._plan, self._coordinator.rank or 0)
        pipeline = Pipeline(
            self._ensemble, self._device, self._reader, outputs, self._config.batch_size
        )
        self._coordinator.report(pipeline.run(self._plan.tasks, self._coordinator))

    def close(self) -> None:
        """Ends the decoding processes."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
