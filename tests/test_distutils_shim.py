"""Training's library can be imported, whether or not Python brings distutils."""

import subprocess
import sys
from pathlib import Path

import pytest

from geopose.system.distutils_shim import LooseVersion

# As Python 3.12 without setuptools: whatever finds distutils elsewhere is asked after this.
MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("distutils", "setuptools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
PROGRAM = """
import geopose.training
from geopose.system.distutils_shim import ensure_distutils
assert ensure_distutils() == ensure_distutils() == {expected!r}
import catalyst.dl
assert hasattr(catalyst.dl, "ProfilerCallback")  # imported for torch >= 1.8.1 only
"""


def run(program: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_catalyst_imports_without_distutils() -> None:
    run(MISSING + PROGRAM.format(expected="declared"))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="distutils left Python in 3.12")
def test_python_s_own_distutils_is_used() -> None:
    run(PROGRAM.format(expected="native"))


def test_versions_are_compared_by_their_numbers() -> None:
    assert LooseVersion("2.13.0+cu130") >= LooseVersion("1.8.1")
    assert LooseVersion("1.10") > LooseVersion("1.9.1") > LooseVersion("1.9")
    assert LooseVersion("1.8.1") == LooseVersion("1.8.1")
