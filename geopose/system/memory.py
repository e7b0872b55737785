"""Keeps the memory of large tensors inside the process, instead of giving it back after each use.

glibc asks the system for every block over 32 MB anew and returns it when it is freed, so that each
layer of a network on a large image pays for fresh, zeroed pages. With these settings freed blocks
stay at hand for the next layer. That spares torch a fifth of its time on an image of 1024 x 1024,
and a quarter of a training step of b7_unet (5 % of one of v2s_unet); OpenVINO keeps its own.
GEOPOSE_KEEP_MEMORY=0 in the environment leaves glibc as it is.
"""

import contextlib
import ctypes
import os
import sys

_SWITCH = "GEOPOSE_KEEP_MEMORY"
# The constants of glibc's malloc.h (mallopt(3)).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1  # the largest size there is; 2^31 - 1 would mean 2 GB, which large images exceed


def keep_freed_memory() -> bool:
    """Tells the C library not to return freed memory; call it before the first large tensor.

    Memory stays as high as its peak, which is flat: the same blocks serve every batch.

    Returns:
        Whether the C library took the settings (glibc does; elsewhere nothing changes).
    """
    if not sys.platform.startswith("linux") or os.environ.get(_SWITCH) == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return all([mallopt(_M_MMAP_MAX, 0) == 1, mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1])


def release_freed_memory() -> None:
    """Returns what is kept for later; call it before processes are forked.

    They would take it over, and with the first write to each page it would exist twice.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library, which keeps nothing
        ctypes.CDLL(None).malloc_trim(0)
