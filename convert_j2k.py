#!/usr/bin/env python
"""Writes a PNG beside every .j2k and .jp2 image of a data directory (see --help)."""

import sys

from geopose.cli import run_command
from geopose.data.convert import main

if __name__ == "__main__":
    sys.exit(run_command(main))
