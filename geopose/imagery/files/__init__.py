"""Raster files of any size, read and written in windows."""
