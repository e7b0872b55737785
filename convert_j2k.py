#!/usr/bin/env python
"""Writes a PNG beside every .j2k and .jp2 image of a data directory (see --help)."""

from geopose.commands import convert

if __name__ == "__main__":
    convert()
