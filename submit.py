"""Predicts the test images with the models of a config and packs the submission."""

import sys

from geopose.cli import run_command
from geopose.inference.command import submit

if __name__ == "__main__":
    sys.exit(run_command(submit))
