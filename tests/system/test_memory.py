"""Freed memory stays with the process, unless that is switched off."""

import sys

import pytest

from tests.tiny_run import ENVIRONMENT, run_script

FAULTS = """
import resource, sys, torch
from geopose.system.memory import keep_freed_memory
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(keep_freed_memory())
print(faults(int(sys.argv[1])), faults(int(sys.argv[2])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is nothing to set")
@pytest.mark.parametrize(
    ("switch", "sizes"),
    [
        (None, (700_000_000, 650_000_000)),  # more than 2 GB, a limit of trimming
        ("0", (35_000_000, 32_000_000)),  # more than 32 MB, which glibc may keep
    ],
)
def test_freed_memory_is_used_again_without_new_pages(switch, sizes):
    switched = {"GEOPOSE_KEEP_MEMORY": switch} if switch else {}
    done = run_script("-c", FAULTS, *sizes, env={**ENVIRONMENT, **switched})
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    if switch is None and said[0] == "False":
        pytest.skip("the C library is not glibc: there is nothing to set")
    first, second = map(int, said[1:])
    assert (said[0] == "True", second < first / 10) == (switch is None, switch is None)
