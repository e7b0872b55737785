"""Puts buildings on their footprints: python rectify.py --agl FILE --vflow FILE --out DIR."""

import sys

from geopose.cli import run_command
from geopose.imagery.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
