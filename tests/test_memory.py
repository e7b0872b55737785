"""Freed memory stays with the process, in large pages, where that costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_run import ROOT

FAULTS = """
import resource, torch
from geopose.system.memory import keep_freed_memory
if keep_freed_memory():
    def faults(count):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(count)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults(700_000_000), faults(650_000_000))  # more than 2 GB, a limit of trimming
"""


def said_with_glibc(code: str) -> str:
    """What a program prints that prints nothing where the C library is another one."""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    if not output:
        pytest.skip("the C library is not glibc: there is nothing to set")
    return output


LARGE_PAGES = """
import resource
from geopose.system.memory import keep_freed_memory
if keep_freed_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(500_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_comes_in_large_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("this system has no large pages, or nothing else")
    output = said_with_glibc(LARGE_PAGES)
    assert int(output) < 500_000_000 / 4096 / 10


LIMITED = """
import resource
from pathlib import Path
from geopose.system.memory import keep_freed_memory
half = resource.getpagesize() * __import__("os").sysconf("SC_PHYS_PAGES") // 2
resource.setrlimit(resource.RLIMIT_AS, (4 * half, resource.RLIM_INFINITY))
used = lambda: int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = used()
if keep_freed_memory():
    print(used() - before < half // 2)
"""


def test_no_memory_is_reserved_where_addresses_are_counted():
    output = said_with_glibc(LIMITED)
    assert output.strip() == "True"


def test_freed_memory_is_used_again_without_new_pages():
    output = said_with_glibc(FAULTS)
    first, second = map(int, output.split())
    assert second < first / 10
