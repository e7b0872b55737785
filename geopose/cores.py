"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: a container's or a job's share, not the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
