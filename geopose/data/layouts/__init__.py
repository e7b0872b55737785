"""Data sets as others lay them out on disk: one file each, see geopose/data/splits.py."""
