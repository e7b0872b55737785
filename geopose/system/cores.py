"""How many cores this process may use, and work spread over them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may run on: a container's or a job's share, not the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in the items' order, worked out by one thread a core, a few ahead of the reader.

    Args:
        work: reads, writes or compresses, so that other threads can run meanwhile.
        items: any number; only a few are held at a time.
    """
    threads = usable_cores()
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        ahead = [pool.submit(work, item) for item in islice(remaining, 2 * threads)]
        try:
            while ahead:
                result = ahead.pop(0).result()
                ahead += [pool.submit(work, item) for item in islice(remaining, 1)]
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
