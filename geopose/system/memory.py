"""Keeps the memory of large tensors inside the process, instead of giving it back after each use.

glibc asks the system for every block over 32 MB anew and returns it when it is freed, so that each
layer of a network on a large image pays for fresh, zeroed pages: half of the time of a 2048 x 2048
image on a CPU, and a fifth of a training step and more. With these settings freed blocks stay at
hand for the next layer. The first use of each page is paid for too, so they are large pages where
the system has them.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import sys
from pathlib import Path

# The constants of glibc's malloc.h (mallopt(3)).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_LARGE_PAGE = 2**21
_NEVER = -1  # the largest size there is; 2^31 - 1 would mean 2 GB, which large images exceed


def keep_freed_memory() -> bool:
    """Tells the C library not to return freed memory; call it before the first large tensor.

    Memory stays as high as its peak, which is flat: the same blocks serve every batch. One arena
    serves all threads, so that what one of them frees another one can use.

    Returns:
        Whether the C library took the settings (glibc does; elsewhere nothing changes).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    taken = [mallopt(option, value) == 1 for option, value in settings]  # each, whatever the others
    if all(taken):
        _ask_for_large_pages(library)
    return all(taken)


def release_freed_memory() -> None:
    """Returns what is kept for later; call it before processes are forked.

    They would take it over, and with the first write to each page it would exist twice.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library, which keeps nothing
        ctypes.CDLL(None).malloc_trim(0)


def _ask_for_large_pages(library: ctypes.CDLL) -> None:
    """Has the memory that malloc gives from now on come in pages of 2 MB instead of 4 KB.

    A block of half the machine's memory is reserved, marked and given back without being used:
    malloc keeps its addresses for later blocks. Where addresses are counted, nothing changes.
    """
    if _addresses_are_counted():
        return
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.free.argtypes = [ctypes.c_void_p]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    block = library.malloc(size)
    if block is None:
        return
    start = -(-block // _LARGE_PAGE) * _LARGE_PAGE
    end = (block + size) // _LARGE_PAGE * _LARGE_PAGE
    if end > start:
        library.madvise(start, end - start, mmap.MADV_HUGEPAGE)
    library.free(block)


def _addresses_are_counted() -> bool:
    """Whether reserving memory costs something: by a limit of the process, or strict accounting."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
