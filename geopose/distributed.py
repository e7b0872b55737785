"""Processes and devices: rank, world size, device, exact shards, gathering.

One process without a launcher is rank 0 of 1. Under torchrun (or torch.distributed.launch) the
environment tells the rest; the device is chosen here and nowhere else.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from geopose.errors import GeoposeError

Result = TypeVar("Result")


def launched() -> bool:
    """True inside torchrun or any launcher that sets the rank variables."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_distributed() -> bool:
    """True when a process group of more than one process is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Rank of this process; before a group is up, what the launcher's environment says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that work together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many of the processes run on this machine and share its cores; all, if nobody says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    """True on the one process that writes logs, progress and shared files."""
    return rank() == 0


def local_device() -> torch.device:
    """The accelerator of this process (one a local rank), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def init_from_env() -> torch.device:
    """Joins the launcher's process group, if there is one, and returns this process's device."""
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched() and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        gpu = device if backend == "nccl" else None
        store = _restarted_store()
        if store is None:
            dist.init_process_group(backend, device_id=gpu)
        else:
            dist.init_process_group(
                backend, device_id=gpu, store=store, rank=rank(), world_size=world_size()
            )
    return device


def _restarted_store() -> dist.Store | None:
    """Where processes that torchrun has restarted meet; None = where torch meets by itself.

    torchrun keeps one store for all attempts, in which the addresses of the processes that have
    died are still found. On one machine, every process knows the number of the attempt. On several
    they count apart: there, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each attempt its own store.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if attempt == "0" or not shared or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size(), is_master=False)
    return dist.PrefixStore(f"attempt_{attempt}", store)


def shutdown() -> None:
    """Leaves the process group, if one is up."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def shard(count: int) -> range:
    """Item numbers of this process: every n-th, no padding, each item in exactly one shard."""
    return range(rank(), count, world_size())


class ShardSampler(Sampler[int]):
    """Yields this process's shard in order: validation counts every image exactly once."""

    def __init__(self, count: int) -> None:
        self._indices = shard(count)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def barrier() -> None:
    """Waits for all processes; nothing to wait for in a single one."""
    if is_distributed():
        dist.barrier()


def gather_objects(obj: Any) -> list[Any]:
    """Every process's object, in rank order, on every process."""
    if not is_distributed():
        return [obj]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


def together(step: Callable[[], Result]) -> Result:
    """Runs a step on all processes; if it fails on one of them, all raise that error.

    Without it, a process that fails alone leaves the others waiting in their next exchange.

    Args:
        step: must not exchange anything between the processes itself.

    Raises:
        GeoposeError: the first process's that failed; marked `on_every_rank`.
    """
    result: Result | None = None
    problem: GeoposeError | None = None
    try:
        result = step()
    except GeoposeError as error:
        problem = error
    for found in gather_objects(problem):
        if found is not None:
            found.on_every_rank = True
            raise found
    return result  # type: ignore[return-value]


def broadcast_number(value: float) -> float:
    """Rank 0's number on every process; cheaper than an object, for use at every step."""
    if not is_distributed():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=_collective_device())
    dist.broadcast(tensor, src=0)
    return float(tensor)


def _collective_device() -> torch.device:
    """Where tensors must lie for the backend in use."""
    return local_device() if dist.get_backend() == "nccl" else torch.device("cpu")


def broadcast_object(obj: Any) -> Any:
    """Rank 0's object on every process."""
    if not is_distributed():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0)
    return box[0]
