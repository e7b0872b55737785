"""Puts buildings on their footprints: python rectify.py --agl FILE --vflow FILE --out DIR."""

from geopose.commands import rectify

if __name__ == "__main__":
    rectify()
