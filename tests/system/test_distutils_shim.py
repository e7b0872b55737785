"""Training's library can be imported, whether or not Python brings distutils."""

import subprocess
import sys

from geopose.system.distutils_shim import LooseVersion
from tests.programs import ROOT

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
assert ensure_distutils() == ensure_distutils() == "declared"
import catalyst.dl
assert hasattr(catalyst.dl, "ProfilerCallback")  # imported for torch >= 1.8.1 only
"""


def test_catalyst_imports_without_distutils() -> None:
    command = [sys.executable, "-W", "ignore", "-c", MISSING + PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_versions_are_compared_by_their_numbers() -> None:
    assert LooseVersion("2.13.0+cu130") >= LooseVersion("1.8.1")
    assert LooseVersion("1.10") > LooseVersion("1.9.1") > LooseVersion("1.9")
    assert LooseVersion("1.8.1") == LooseVersion("1.8.1")
