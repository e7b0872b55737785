"""Tiles' maps put together on disk: any size of image in the memory of a tile.

In: tiles and their weights, which add up to 1. Out: maps that are read a window at a time.
"""

import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.errors import RunError
from geopose.imagery.rectify import Windows
from geopose.inference.images.tiling import Window

Array = NDArray[np.float32]


class Mosaic:
    """Some maps of one image in an uncompressed file, 4 bytes a pixel each.

    Args:
        path: the file; whoever gives it removes it.
        maps: how many.
        shape: (height, width).

    Raises:
        RunError: the file cannot be made.
    """

    def __init__(self, path: Path, maps: int, shape: tuple[int, int]) -> None:
        self._path, self._shape = path, (maps, *shape)
        self._lock = threading.Lock()
        try:
            with path.open("wb") as file:
                file.truncate(4 * maps * shape[0] * shape[1])  # a sparse file of zeros
        except OSError as error:
            raise RunError(
                f"cannot write {path}: {error.strerror}; check the space there"
            ) from error

    def add(self, window: Window, weights: Array, maps: list[Array]) -> None:
        """Adds a tile.

        Args:
            window: rows and columns.
            weights: H x W.
            maps: H x W each.

        Raises:
            RunError: the disk is full.
        """
        with self._lock:
            self._reserve(window)
            opened = self._open("r+")
            for whole, part in zip(opened, maps, strict=True):
                whole[window] += weights * part
            opened.flush()
            del opened  # mapped pages count as this process's memory until then

    def read(self, number: int, window: Window) -> Array:
        """A window of one map."""
        return np.array(self._open("r")[number][window])

    def _open(self, mode: str) -> np.memmap:
        return np.memmap(self._path, np.float32, mode, shape=self._shape)  # type: ignore[call-overload, no-any-return]

    def _reserve(self, window: Window) -> None:
        """Writing to mapped memory of a full disk kills the process, so room is made before."""
        _, height, width = self._shape
        rows, _ = window
        try:
            with self._path.open("r+b") as file:
                for number in range(self._shape[0]):
                    first = 4 * width * (number * height + rows.start)
                    os.posix_fallocate(file.fileno(), first, 4 * width * (rows.stop - rows.start))
        except OSError as error:
            raise _full(self._path, error) from error


def _full(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {path}: {error.strerror}; check the space there")


class MosaicMap:
    """One map of a mosaic as `Windows`: no-data where the image has none.

    Args:
        mosaic: finished.
        number: of the map in it.
        valid: H x W windows of bool.
    """

    def __init__(self, mosaic: Mosaic, number: int, valid: Windows) -> None:
        self._mosaic, self._number, self._valid = mosaic, number, valid
        self.shape = valid.shape

    def __getitem__(self, window: Window) -> Array:
        found = self._mosaic.read(self._number, window)
        found[~self._valid[window]] = np.nan
        return found
