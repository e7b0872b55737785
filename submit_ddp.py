"""The run of submit.py on every visible GPU, on several CPU processes, or inside torchrun."""

import sys

from geopose.cli import run_command
from geopose.inference.command import submit_ddp

if __name__ == "__main__":
    sys.exit(run_command(submit_ddp))
