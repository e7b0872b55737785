"""Overhead geopose: height above ground and vertical flow from one oblique satellite image."""

import os
from importlib import import_module
from typing import Any

from geopose.system.home import ensure_home

__version__ = "0.1.0"

# These must be set before the libraries are first imported: albumentations looks up the network at
# import, OpenCV warns at every JPEG 2000 read.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
# onnxruntime keeps a number for this machine and a queue of reports to its makers below the home
# folder, and the hub's client tells its own what calls it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
ensure_home()

# Found when they are first asked for: what they need takes seconds to import.
_PLACES = {"load": "geopose.inference.api", "rectify": "geopose.imagery.rectify"}


def __getattr__(name: str) -> Any:
    """`load` and `rectify`."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
