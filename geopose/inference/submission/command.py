"""The commands submit.py and submit_ddp.py: arguments in, one run for each config.

Both do the same; submit_ddp.py starts the processes itself unless a launcher did.
"""

from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from geopose import distributed
from geopose.checkpoints.remote.fetch import fetch_all
from geopose.cli import ArgumentParser
from geopose.data.layout import resolve_data_dir
from geopose.data.layouts.splits import add_data_options, read_split
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


def submit(argv: Sequence[str] | None = None) -> None:
    """submit.py: the run in this process (or as one of a launcher's)."""
    arguments = _parser("Predict the test images and pack the submission.").parse_intermixed_args(
        argv
    )
    coordinator = (
        launched_coordinator() if distributed.launched() else nullcontext(Coordinator.alone())
    )
    _start(_job(arguments), arguments.dry_run, coordinator, distributed.world_size())


def submit_ddp(argv: Sequence[str] | None = None) -> None:
    """submit_ddp.py: the same run on every visible GPU, on N CPU processes, or under torchrun."""
    parser = _parser(
        "Predict the test images on every visible GPU, on several CPU processes (--nproc), or as "
        "part of a torchrun job, and pack the submission."
    )
    parser.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="processes on this machine (default: one for each visible GPU, else one); "
        "not under torchrun, which decides itself",
    )
    arguments = parser.parse_intermixed_args(argv)
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


def _parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="CONFIG | key=value",
        help="inference configs, run in turn, and values that override theirs, such as "
        "ensemble.tta=null inference.batch_size=2 submission_dir=out",
    )
    add_data_options(parser)
    parser.add_argument(
        "--visualize", action="store_true", help="also write a picture of every prediction"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start over: predict every image, also those that an earlier run has finished",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, with which models, how much memory and time it will take "
        "(one image is predicted to find out), and write nothing",
    )
    return parser


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
