"""Overhead geopose: height above ground and vertical flow from one oblique satellite image."""

import os

__version__ = "0.1.0"

# These must be set before the libraries are first imported: albumentations looks up the network at
# import, OpenCV warns at every JPEG 2000 read.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
