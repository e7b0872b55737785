"""Room in /dev/shm, through which worker processes hand over their batches.

A container has 64 MB of it unless told otherwise; torch's way without file descriptors
(`file_system`) takes the same room. A worker that finds none is killed, or waits for ever.
"""

import os
from pathlib import Path

SHARED = Path("/dev/shm")
_SHARE = 0.8  # other processes want some of it too


def free_shared_bytes() -> int | None:
    """Free bytes of shared memory; None where the system has another kind."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def workers_that_fit(
    workers: int, ahead: int, batch_bytes: int, free_bytes: int
) -> tuple[int, int]:
    """How many worker processes have room for their batches, and how many batches ahead each.

    Args:
        workers: wanted.
        ahead: batches that each worker should prepare; one more is with the reader.
        batch_bytes: of one batch.
        free_bytes: of shared memory, for this process.
    """
    batches = int(_SHARE * free_bytes) // max(1, batch_bytes) - 1
    if batches >= workers * ahead:
        return workers, ahead
    fitting = max(0, min(workers, batches))
    return fitting, max(1, batches // fitting) if fitting else ahead
