"""Freed memory stays with the process, unless that is switched off."""

import os
import subprocess
import sys

import pytest

from tests.tiny_run import ROOT

FAULTS = """
import resource, torch
from geopose.system.memory import keep_freed_memory
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(keep_freed_memory())
print(faults(700_000_000), faults(650_000_000))  # more than 2 GB, a limit of trimming
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is nothing to set")
@pytest.mark.parametrize("switch", [None, "0"])
def test_freed_memory_is_used_again_without_new_pages(switch):
    environment = {**os.environ, **({"GEOPOSE_KEEP_MEMORY": switch} if switch else {})}
    said = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True, text=True, check=True, cwd=ROOT, env=environment,
    ).stdout.split()  # fmt: skip
    if switch is None and said[0] == "False":
        pytest.skip("the C library is not glibc: there is nothing to set")
    first, second = map(int, said[1:])
    assert (said[0] == "True", second < first / 10) == (switch is None, switch is None)
