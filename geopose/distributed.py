"""Processes and devices: rank, world size, device, exact shards, gathering.

One process without a launcher is rank 0 of 1. Under torchrun (or torch.distributed.launch) the
environment tells the rest; the device is chosen here and nowhere else.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Sampler

from geopose.errors import GeoposeError, InputError, RunError, one_line
from geopose.system.devices import use_device, warn_of_unusable_gpu

Result = TypeVar("Result")

# For one exchange. The longest wait is for the process that validates the largest share, or that
# writes a checkpoint to a slow disk; NCCL's own 10 minutes are short for either.
TIMEOUT = timedelta(minutes=30)


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
    """The accelerator of this process (one a local rank), else the CPU.

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", _gpu_of(local, torch.cuda.device_count()))
    warn_of_unusable_gpu()
    return torch.device("cpu")


def _gpu_of(local: int, visible: int) -> int:
    """The GPU of a local rank; the only one, where a scheduler shows each process its own."""
    if local < visible:
        return local
    if visible == 1:
        return 0
    raise InputError(
        f"LOCAL_RANK={local}: this process sees {visible} GPUs; start {visible} processes on this "
        "machine, or show each process its own by CUDA_VISIBLE_DEVICES"
    )


def init_from_env() -> torch.device:
    """Joins the launcher's process group, if there is one, and returns this process's device.

    Raises:
        InputError: two processes would use one GPU, or there are fewer GPUs than processes.
        RunError: the processes do not come together.
    """
    device = local_device()
    use_device(device)
    if launched() and not dist.is_initialized():
        with exchange_errors():
            _join("nccl" if device.type == "cuda" else "gloo", device)
    return device


def _join(backend: str, device: torch.device) -> None:
    store = _restarted_store()
    gpu = device if backend == "nccl" else None
    if gpu is not None:
        store = store or next(iter(rendezvous("env://", timeout=TIMEOUT)))[0]
        uuid = str(torch.cuda.get_device_properties(gpu).uuid)
        refuse_shared_gpus(dist.PrefixStore("gpus", store), rank(), world_size(), uuid)
    if store is None:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(
            backend, timeout=TIMEOUT, device_id=gpu,
            store=store, rank=rank(), world_size=world_size(),
        )  # fmt: skip


def refuse_shared_gpus(store: dist.Store, own: int, size: int, gpu: str) -> None:
    """Tells the other processes which GPU this one has; NCCL cannot have two processes on one.

    Args:
        store: where all processes meet; empty.
        own: rank of this process. size: number of processes.
        gpu: a name that no other GPU has, on no machine.

    Raises:
        InputError: another process has the same; on all processes alike.
    """
    store.set(str(own), gpu)
    owners: dict[str, int] = {}
    for other in range(size):
        name = store.get(str(other)).decode()
        first = owners.setdefault(name, other)
        if first != other:
            error = InputError(
                f"processes {first} and {other} are on one GPU ({name}), and NCCL wants one "
                "for each; start fewer processes, or give each its own by CUDA_VISIBLE_DEVICES"
            )
            error.on_every_rank = True
            raise error


@contextmanager
def exchange_errors() -> Iterator[None]:
    """Makes one line of what NCCL or the launcher's store say when processes cannot exchange.

    Raises:
        RunError: an exchange failed or took too long.
    """
    try:
        yield
    except dist.DistError as error:
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        minutes = TIMEOUT.total_seconds() / 60
        raise RunError(
            f"the exchange between the processes failed ({one_line(last[0], 200)}); if no other "
            "process has said why, NCCL_DEBUG=INFO does (a process is waited for at most "
            f"{minutes:.0f} minutes)"
        ) from error


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
    tensor = torch.full((1,), value, dtype=torch.float64, device=_collective_device())
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
