"""Scores predictions against truth: python evaluate.py PREDICTIONS TRUTH [--json FILE]."""

import sys

from geopose.cli import run_command
from geopose.evaluation import main

if __name__ == "__main__":
    sys.exit(run_command(main))
