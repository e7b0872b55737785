"""How many loader workers and CPU threads a training process takes, when the config says `auto`."""

import os
from dataclasses import dataclass

import torch

from geopose.errors import InputError
from geopose.schema.numbers import is_whole
from geopose.system.cores import usable_cores

AUTO = "auto"
MAX_GPU_WORKERS = 8


@dataclass(frozen=True)
class Resources:
    """Worker processes of each loader and threads of the network, for one training process."""

    train_workers: int
    valid_workers: int
    threads: int


def _threads_from_environment() -> int:
    """$OMP_NUM_THREADS, or 0 where it is unset or no whole number."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def _number(value: int | str, automatic: int, key: str, least: int) -> int:
    if value == AUTO:
        return automatic
    if not is_whole(value, least):
        raise InputError(f"{key}={value}: a whole number from {least}, or auto")
    return value


def choose_resources(
    train_workers: int | str,
    valid_workers: int | str,
    threads: int | str,
    device: torch.device,
    local_processes: int,
) -> Resources:
    """Resolves `auto`.

    On a GPU the cores of this process's share decode images (at most 8 workers). On a CPU the
    network needs the cores itself: one worker feeds it, and the threads are the cores of the
    share (what benchmarks/cpu_layouts.py measured for one process), or $OMP_NUM_THREADS where the
    user or a launcher has set it.

    Raises:
        InputError: neither `auto` nor a number in range.
    """
    share = max(1, usable_cores() // max(1, local_processes))
    workers = min(MAX_GPU_WORKERS, share) if device.type == "cuda" else min(1, share)
    return Resources(
        _number(train_workers, workers, "train.loaders.train.num_workers", 0),
        _number(valid_workers, workers, "train.loaders.valid.num_workers", 0),
        _number(threads, _threads_from_environment() or share, "train.threads", 1),
    )
