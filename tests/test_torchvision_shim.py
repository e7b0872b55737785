"""The libraries that import torchvision can be imported, whatever torchvision pip brought."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from geopose.system.distutils_shim import ensure_distutils
from geopose.system.torchvision_shim import ensure_torchvision
assert ensure_torchvision() == ensure_torchvision() != "absent"
ensure_distutils()  # of these, catalyst alone needs it
import torchvision, timm, pytorch_toolbelt.modules, catalyst.dl
"""


def test_everything_that_needs_torchvision_imports() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
