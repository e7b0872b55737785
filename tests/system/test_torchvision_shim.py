"""The libraries that import torchvision can be imported, whatever torchvision pip brought."""

import subprocess
import sys

from tests.programs import ROOT

PROGRAM = """
import sys
from geopose.system.distutils_shim import ensure_distutils
from geopose.system.torchvision_shim import ensure_torchvision
assert ensure_torchvision() == ensure_torchvision() != "absent"
said = ensure_distutils()  # of these, catalyst alone needs it
assert said == ensure_distutils()
assert said == "native" or sys.version_info >= (3, 12)  # which distutils left
import torchvision, timm, pytorch_toolbelt.modules, catalyst.dl
assert hasattr(catalyst.dl, "ProfilerCallback")  # imported for torch >= 1.8.1 only
"""


def test_everything_that_needs_torchvision_imports() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
