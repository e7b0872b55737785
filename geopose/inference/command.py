"""The commands submit.py and submit_ddp.py: arguments in, one run for each config.

Both do the same; submit_ddp.py starts the processes itself unless a launcher did. The processes
meet at a port that the system chooses, and each gets its share of the cores.
"""

import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import RLock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tqdm import tqdm

from geopose import distributed
from geopose.checkpoints.fetch import fetch_all
from geopose.cli import ArgumentParser, setup_logging
from geopose.cores import usable_cores
from geopose.data.layout import DATA_DIR_VARIABLE, read_split, resolve_data_dir
from geopose.errors import GeoposeError, InputError, RunError
from geopose.inference.build import load_entry
from geopose.inference.config import InferenceConfig, load_configs, split_arguments
from geopose.inference.run import check_submission_dir, run_inference

_HOST = "127.0.0.1"
_MEETING_TIME = timedelta(minutes=5)


@dataclass(frozen=True)
class _Job:
    """What every process of a run is told."""

    configs: list[InferenceConfig]
    data_dir: Path
    visualize: bool

    def check_folders(self) -> None:
        """Finds out whether every config's results can be written, before models are loaded."""
        for config in self.configs:
            check_submission_dir(config, self.visualize)

    def fetch_models(self) -> None:
        """Downloads what is not here yet; of several processes one does, the others wait."""
        entries = [entry for config in self.configs for entry in config.models]
        fetch_all([source for entry in entries for source in entry.sources])

    def check_models(self) -> None:
        """Loads every model once and lets go of it, so that a long run does not meet a bad one."""
        for entry in {entry for config in self.configs for entry in config.models}:
            load_entry(entry)

    def run(self) -> None:
        """Runs the configs in turn, on every process alike."""
        for config in self.configs:
            run_inference(config, self.data_dir, self.visualize)


def submit(argv: Sequence[str] | None = None) -> None:
    """submit.py: the run in this process (or as one of a launcher's)."""
    parser = _parser("Predict the test images and pack the submission.")
    _run_here(_job(parser.parse_intermixed_args(argv)))


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
        _run_here(_job(arguments))
        return
    processes = _process_count(arguments.nproc)
    job = _job(arguments)
    if processes == 1:
        _run_here(job)
    else:
        _run_spawned(job, processes)


def _parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="CONFIG | key=value",
        help="inference configs, run in turn, and values that override theirs, such as "
        "ensemble.tta=null inference.batch_size=2 submission_dir=out",
    )
    parser.add_argument(
        "--data-dir",
        "--data_dir",
        metavar="DIR",
        help=f"data directory (default: ${DATA_DIR_VARIABLE})",
    )
    parser.add_argument(
        "--visualize", action="store_true", help="also write a picture of every prediction"
    )
    return parser


def _job(arguments: Namespace) -> _Job:
    """Checks configs and data before any process is started or anything is written."""
    files, overrides = split_arguments(arguments.arguments)
    configs = load_configs(files, overrides)
    data_dir = resolve_data_dir(arguments.data_dir)
    read_split(data_dir, "test")
    job = _Job(configs, data_dir, arguments.visualize)
    job.check_folders()
    job.fetch_models()
    if len(configs) > 1:
        job.check_models()
    return job


def _run_here(job: _Job) -> None:
    """Runs in this process; joins the launcher's group if there is one."""
    distributed.init_from_env()
    try:
        job.run()
    except GeoposeError as error:
        if distributed.is_main():
            raise
        raise SystemExit(error.exit_code) from error  # the first process says what it was
    finally:
        distributed.shutdown()


def _process_count(wanted: int | None) -> int:
    gpus = torch.cuda.device_count()
    if wanted is None:
        return max(1, gpus)
    if wanted < 1:
        raise InputError(f"--nproc is {wanted}, must be 1 or more")
    if gpus and wanted > gpus:
        raise InputError(
            f"--nproc is {wanted}, but {gpus} GPUs are visible; to use the CPU instead set "
            "CUDA_VISIBLE_DEVICES to nothing"
        )
    return wanted


def _run_spawned(job: _Job, processes: int) -> None:
    """Starts the processes, waits, and turns whatever happens to one of them into one error."""
    job.check_models()  # quicker, and quieter, than all processes finding out
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # says it again
    # This process keeps the meeting point, so its port cannot be lost to anybody else.
    store = dist.TCPStore(_HOST, 0, None, True, _MEETING_TIME, wait_for_workers=False)
    errors: SimpleQueue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(_child, (processes, store.port, errors, job), nprocs=processes, join=False)
    try:
        while not context.join():
            pass
    except mp.ProcessRaisedException as error:
        _raise_killed(context)
        last = str(error).strip().splitlines()[-1]
        raise RunError(f"process {error.error_index} failed: {last}") from error
    except mp.ProcessExitedException as error:
        if not errors.empty():
            kind, message = errors.get()
            raise kind(message) from error
        _raise_killed(context)
        raise RunError(f"process {error.error_index} ended with code {error.exit_code}") from error


def _raise_killed(context: mp.ProcessContext) -> None:
    """A killed process is the cause, whatever its peers then complain about."""
    for index, process in enumerate(context.processes):
        code = process.exitcode or 0
        if code < 0 and -code != signal.SIGTERM:  # the survivors are ended by SIGTERM
            name = signal.Signals(-code).name
            raise RunError(f"process {index} was killed by {name}; no archive written, run again")


def _child(local_rank: int, processes: int, port: int, errors: SimpleQueue, job: _Job) -> None:
    """One of the spawned processes, set up as torchrun would do it."""
    os.environ.update(
        RANK=str(local_rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(processes),
        MASTER_ADDR=_HOST,
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the parent process serves the port
        TORCHELASTIC_RESTART_COUNT="0",
    )
    setup_logging()
    tqdm.set_lock(RLock())  # its default is shared between processes, and leaks when one is killed
    torch.set_num_threads(max(1, usable_cores() // processes))
    distributed.init_from_env()
    try:
        job.run()
    except GeoposeError as error:
        errors.put((type(error), str(error)))
        sys.exit(error.exit_code)
    finally:
        distributed.shutdown()  # or its threads end the process with a complaint
