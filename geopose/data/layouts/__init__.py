"""Data sets as others lay them out on disk: one file each, read by splits.py."""
