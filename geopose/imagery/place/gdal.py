"""rasterio (GDAL) when it is installed, without the noise it makes; one line where it is not."""

import functools
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geopose.errors import InputError

INSTALL = 'pip install "geopose[geo]" (rasterio)'

# GDAL keeps what it has read and written in memory, by itself up to 5 % of the machine's: 25 GB of
# a large one. Windows are worked through once here, so a few rows of tiles are enough.
_CACHE_BYTES = 1 << 28

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
    _set_up(rasterio)
    return rasterio


@functools.cache
def _set_up(rasterio: Any) -> None:
    """Once a process; whoever sets GDAL's own variables decides for himself."""
    if "GDAL_CACHEMAX" not in os.environ:
        rasterio._env.set_gdal_config("GDAL_CACHEMAX", _CACHE_BYTES)
    if (
        "GDAL_ERROR_ON_LIBJPEG_WARNING" not in os.environ
    ):  # the rest of a cut-off file would be grey
        rasterio._env.set_gdal_config("GDAL_ERROR_ON_LIBJPEG_WARNING", True)


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
