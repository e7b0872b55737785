"""Keeps the memory of large tensors inside the process, instead of giving it back after each use.

glibc asks the system for every block over 32 MB anew and returns it when it is freed, so that each
layer of a network on a large image pays for fresh, zeroed pages: half of the time of a 2048 x 2048
image on a CPU. With these settings freed blocks stay at hand for the next layer.
"""

import ctypes
import sys

# The constants of glibc's malloc.h (mallopt(3)).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = -1  # the largest size there is; 2^31 - 1 would mean 2 GB, which large images exceed


def keep_freed_memory() -> bool:
    """Tells the C library not to return freed memory; call it before the first large tensor.

    Memory stays as high as its peak, which is flat: the same blocks serve every image. One arena
    serves all threads, so that what one of them frees another one can use.

    Returns:
        Whether the C library took the settings (glibc does; elsewhere nothing changes).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    taken = [mallopt(option, value) == 1 for option, value in settings]  # each, whatever the others
    return all(taken)
