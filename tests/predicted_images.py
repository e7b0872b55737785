"""A predicted image for tests of products: a rendered town, no-data, black pixels, a place."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.imagery.place.georeference import Georeference
from geopose.imagery.rectify import Window, Windows
from geopose.products.predicted import Flow, Flows, PredictedImage
from geopose.words import FROM_SENSOR
from tests.box_scenes import render_boxes, town
from tests.tiny_data import smooth_rgb

UTM = Georeference("EPSG:32617", (0.5, 0.0, 436000.0, 0.0, -0.5, 3357000.0))
SHAPE = (333, 701)
FLOW = Flow(0.8, 0.6)
FACTS = {"model": "a network", "version": "9.9", "stretch": "2 to 98 %"}


class Recorded:
    """Windows of an array; remembers the largest part that was asked for."""

    def __init__(self, values: NDArray) -> None:
        self._values, self.shape, self.largest = values, values.shape, 0

    def __getitem__(self, window: Window) -> NDArray:
        part = self._values[window]
        self.largest = max(self.largest, part.shape[0] * part.shape[1])
        return part


def predicted_town(folder: Path, shape: tuple[int, int] = SHAPE, **changes: Any) -> PredictedImage:
    """A town; no data in its upper left corner, black roofs in its last rows and columns."""
    agl_m = _heights(shape)
    rgb, valid = smooth_rgb(*shape), np.ones(shape, bool)
    rgb[-20:] = 0
    rgb[:, -20:] = 0
    valid[:40, :60] = False
    source = folder / "town.tif"
    source.touch()
    image = PredictedImage(
        source, "town", shape, UTM, 0.5, rgb, valid, agl_m,
        (agl_m * FLOW.scale_px_per_m).astype(np.float32), None,
        Flows(FLOW, FROM_SENSOR, Flow(0.7, 0.5), 0.05, 0.1, FLOW, 0.2), dict(FACTS),
    )  # fmt: skip
    return replace(image, **changes)


@functools.cache
def _rendered() -> NDArray[np.float32]:
    return render_boxes(town(SHAPE), SHAPE, FLOW.scale_px_per_m, FLOW.angle_rad).agl_m


def _heights(shape: tuple[int, int]) -> NDArray[np.float32]:
    """The town, over and over if there is room for more than one."""
    rows, columns = (np.arange(size) % most for size, most in zip(shape, SHAPE, strict=True))
    return _rendered()[rows[:, None], columns[None, :]]


def array_of(values: Windows) -> NDArray:
    """All of a map."""
    return values[slice(0, values.shape[0]), slice(0, values.shape[1])]
