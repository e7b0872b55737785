"""rasterio (GDAL) when it is installed, without the noise it makes; one line where it is not."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geopose.errors import InputError

INSTALL = 'pip install "geopose[geo]" (rasterio)'

# GDAL's complaints about a broken file would come on top of the one line of our InputError.
logging.getLogger("rasterio").setLevel(logging.CRITICAL)


def find_rasterio() -> Any | None:
    """The rasterio module with what we use of it, or None where it is not installed."""
    try:
        rasterio = importlib.import_module("rasterio")
        for part in ("control", "rpc", "shutil", "transform", "warp", "windows"):
            importlib.import_module(f"rasterio.{part}")
    except ImportError:
        return None
    return rasterio


def need_rasterio(what: str) -> Any:
    """The rasterio module.

    Args:
        what: the file or option that needs it, and what for: the start of the message.

    Raises:
        InputError: it is not installed; one line says how to get it.
    """
    rasterio = find_rasterio()
    if rasterio is None:
        raise InputError(f"{what} needs rasterio: {INSTALL}")
    return rasterio


@contextmanager
def quiet() -> Iterator[None]:
    """Files without a place on the earth are usual here: rasterio need not warn of each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dataset has no geotransform")
        warnings.filterwarnings("ignore", message="The given matrix is equal to Affine.identity")
        yield
