"""A small picture of an image of any size: means of blocks, gathered window by window."""

import numpy as np
from numpy.typing import NDArray

from geopose.imagery.rectify import Window


class Thumbnail:
    """Means over blocks of pixels, those that are no-data left out.

    Args:
        shape: (height, width) of the image, pixels.
        longest: most pixels of the thumbnail along either side; a smaller image stays as it is.
        count: bands.
    """

    def __init__(self, shape: tuple[int, int], longest: int, count: int = 1) -> None:
        self._image = shape
        share = min(1.0, longest / max(shape))
        self.shape = max(1, round(shape[0] * share)), max(1, round(shape[1] * share))
        # Single precision holds the sums: a block of a million pixels is off by some 1e-4 of it.
        self._sums = np.zeros((*self.shape, count), np.float32)
        self._known = np.zeros(self.shape, np.float32)

    def add(self, window: Window, pixels: NDArray, valid: NDArray[np.bool_]) -> None:
        """Adds a window of the image, once.

        Args:
            window: its rows and columns.
            pixels: h x w, or h x w x bands.
            valid: h x w, False where the pixels are no-data.
        """
        cells, starts = zip(
            *(_blocks(*parts) for parts in zip(window, self._image, self.shape, strict=True)),
            strict=True,
        )
        values = np.where(valid[..., None], pixels.reshape(*valid.shape, -1), 0)
        self._sums[cells] += _block_sums(values.astype(np.float32), starts)
        self._known[cells] += _block_sums(valid.astype(np.float32), starts)

    def mean(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(means, h x w x bands, NaN where nothing is known; share of pixels known, h x w)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sums / self._known[..., None]
        rows, columns = (_sizes(*parts) for parts in zip(self._image, self.shape, strict=True))
        return mean, (self._known / np.outer(rows, columns)).astype(np.float32)

    def picture(self) -> NDArray[np.uint8]:
        """h x w x 4: colours and opacity, which is the share of pixels known."""
        mean, known = self.mean()
        colours = np.nan_to_num(np.rint(mean), nan=0.0)
        rgba = np.dstack([np.broadcast_to(colours, (*self.shape, 3)), np.rint(255 * known)])
        return rgba.clip(0, 255).astype(np.uint8)


def _blocks(span: slice, pixels: int, cells: int) -> tuple[slice, NDArray[np.intp]]:
    """Cells that pixels of an axis belong to, and where in the span the pixels of each begin."""
    cell = np.arange(span.start, span.stop) * cells // pixels
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    return slice(int(cell[0]), int(cell[-1]) + 1), starts


def _sizes(pixels: int, cells: int) -> NDArray[np.intp]:
    return np.bincount(np.arange(pixels) * cells // pixels, minlength=cells)


def _block_sums(values: NDArray[np.float32], starts: tuple[NDArray, ...]) -> NDArray[np.float32]:
    rows, columns = starts
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
