"""How much the truth of every city varies: what losses that ask for it divide by.

In: the training records. Out: variances by city, as the score defines them. They follow from the
files alone and are known before the first step, so that a run goes on with those it began with.
They are estimates: of each city some images, spread evenly over its list, and of these some rows.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import open_agl_m
from geopose.data.layout import ImageRecord
from geopose.data.targets import Variances
from geopose.data.vflow import read_vflow
from geopose.distributed import is_main
from geopose.errors import InputError
from geopose.metrics import ScoreAccumulator

logger = logging.getLogger(__name__)

IMAGES = 32  # of a city, at most
LINES = 128  # rows and columns of an image, about
# What varies less is taken to vary as much: a city without relief, or seen from straight above,
# would outweigh all others by the errors of its labels.
LEAST_M2, LEAST_PX2 = 1.0, 1.0


def city_variances(
    records: Sequence[ImageRecord], cities: Iterable[str] = ()
) -> dict[str, Variances]:
    """Variances of every city of the records, and of further cities.

    Args:
        records: training images, with heights and flow.
        cities: further ones, of which nothing is known: they get the mean over the others.

    Returns:
        None below LEAST_M2 and LEAST_PX2; what is, is said once.

    Raises:
        InputError: a file cannot be read, or there is no truth.
    """
    by_city: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_city[record.city].append(record)
    found = {city: _floored(city, _estimate(own)) for city, own in by_city.items()}
    means = np.mean([list(value) for value in found.values()], axis=0)
    unknown = Variances(*(float(mean) for mean in means))
    return {**dict.fromkeys(cities, unknown), **found}


def _estimate(records: Sequence[ImageRecord]) -> Variances:
    """Of the images of one city; 0 where no height is known."""
    count = min(IMAGES, len(records))
    score = ScoreAccumulator()  # its moments of the truth are the definition
    for record in (records[number * len(records) // count] for number in range(count)):
        agl_m, (scale, angle) = _some_heights(record), _flow(record)
        score.update("", np.nan_to_num(agl_m), scale, angle, agl_m, scale, angle)
    state = score.state()[""]
    pixels, _, agl = state["agl_truth"]
    _, _, flow = state["flow_truth"]
    return Variances(agl / max(pixels, 1.0), flow / max(pixels, 1.0))


def _some_heights(record: ImageRecord) -> NDArray[np.float32]:
    """Every so many rows and columns of a height map, metres; of a raw file no more is read."""
    path = record.agl_file()
    if path is None:
        raise InputError(f"{record.where}: there are no heights and flow to learn from")
    heights = open_agl_m(path)
    rows, columns = (_lines(size) for size in heights.shape)
    return np.concatenate([heights[row : row + 1, :][:, columns] for row in rows])


def _lines(size: int) -> range:
    step = max(1, size // LINES)
    return range(step // 2, size, step)


def _flow(record: ImageRecord) -> tuple[float, float]:
    if record.vflow is None:
        raise InputError(f"{record.where}: there are no heights and flow to learn from")
    return read_vflow(record.vflow)


def _floored(city: str, found: Variances) -> Variances:
    floored = Variances(max(found.agl_m2, LEAST_M2), max(found.flow_px2, LEAST_PX2))
    if floored != found and is_main():
        logger.warning(
            "%s: the truth of its training images varies by %.2g square metres and %.2g square "
            "pixels; the loss takes it to be %g and %g at least",
            city, *found, LEAST_M2, LEAST_PX2,
        )  # fmt: skip
    return floored
