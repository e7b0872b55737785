"""What submit.py and submit_ddp.py do: their arguments in, checked, and one run for each config."""

from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from geopose import distributed
from geopose.checkpoints.remote.fetch import fetch_all
from geopose.data.layout import resolve_data_dir
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError
from geopose.files.config_folder import shipped_or_own
from geopose.inference.build import load_entry
from geopose.inference.config import InferenceConfig, load_configs, split_arguments
from geopose.inference.dry_run import dry_run
from geopose.inference.run import run_inference
from geopose.inference.submission.folder import SubmissionFolder
from geopose.inference.submission.leader import RunOptions, SubmissionJob
from geopose.inference.workers.coordinator import Coordinator
from geopose.inference.workers.launch import (
    launched_coordinator,
    process_count,
    run_until_stopped,
    spawned_coordinator,
)


@dataclass(frozen=True)
class _Job:
    """What every process of a run is told."""

    configs: list[InferenceConfig]
    options: RunOptions

    def check_folders(self) -> None:
        """Finds out whether every config's results can be written, before models are loaded."""
        for config in self.configs:
            SubmissionFolder(config.submission_dir).check(self.options.visualize)

    def fetch_models(self) -> None:
        """Downloads what is not here yet; of several processes one does, the others wait."""
        entries = [entry for config in self.configs for entry in config.models]
        fetch_all([source for entry in entries for source in entry.sources])

    def check_models(self) -> None:
        """Loads every model once and lets go of it, so that a long run does not meet a bad one."""
        for entry in {entry for config in self.configs for entry in config.models}:
            load_entry(entry)

    def run(self, coordinator: Coordinator) -> None:
        """Runs the configs in turn, on every process alike."""
        for number, config in enumerate(self.configs):
            run_inference(SubmissionJob(config, self.options), coordinator.part(f"run-{number}"))

    def explain(self, processes: int) -> None:
        """Says what `run` would do."""
        for config in self.configs:
            dry_run(SubmissionJob(config, self.options), processes)


def run_here(arguments: Namespace) -> None:
    """Runs in this process, or as one of a launcher's.

    Args:
        arguments: of submit.py.

    Raises:
        InputError: a config or data that cannot be used.
        RunError: see `run_inference`.
    """
    coordinator = (
        launched_coordinator() if distributed.launched() else nullcontext(Coordinator.alone())
    )
    _start(_job(arguments), arguments.dry_run, coordinator, distributed.world_size())


def run_on_several(arguments: Namespace) -> None:
    """Runs in as many processes as `nproc` says, or as one of a launcher's.

    Args:
        arguments: of submit_ddp.py.

    Raises:
        InputError: a number of processes, a config or data that cannot be used.
        RunError: see `run_inference`.
    """
    if distributed.launched():
        if arguments.nproc is not None:
            raise InputError("--nproc: torchrun has started the processes already; leave it out")
        job, processes = _job(arguments), distributed.world_size()
        _start(job, arguments.dry_run, launched_coordinator(), processes)
        return
    processes = process_count(arguments.nproc)
    job = _job(arguments)
    coordinator = (
        nullcontext(Coordinator.alone())
        if processes == 1
        else spawned_coordinator(processes, job.run)
    )
    _start(job, arguments.dry_run, coordinator, processes)


def _job(arguments: Namespace) -> _Job:
    """Checks configs and data before any process is started or anything is written."""
    files, overrides = split_arguments(arguments.arguments)
    configs = load_configs([shipped_or_own(file) for file in files], overrides)
    options = RunOptions(
        resolve_data_dir(arguments.data_dir),
        arguments.visualize,
        arguments.force,
        arguments.layout,
    )
    read_split(options.data_dir, "test", options.layout)
    job = _Job(configs, options)
    job.check_folders()
    job.fetch_models()
    if len(configs) > 1:
        job.check_models()
    return job


def _start(
    job: _Job, dry: bool, coordinator: AbstractContextManager[Coordinator], processes: int
) -> None:
    """Runs a job with a coordinator, or only explains it."""
    if dry:
        if distributed.is_main():
            job.explain(processes)
        return
    run_until_stopped(coordinator, job.run)
