"""Looks through the truth of a data set before anything is learned from it, or compared with it.

In: records. Out: nothing, or what does not fit. All flow files are read, a few bytes each; of the
height maps a sample, since all of them would take minutes: what is said of a unit holds for a set.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geopose.data.checks.numbers import HeightCounts, scale_problem, small_scales_problem
from geopose.data.heights import read_agl_cm
from geopose.data.layout import ImageRecord
from geopose.data.vflow import read_vflow
from geopose.errors import InputError

logger = logging.getLogger(__name__)

SAMPLED_MAPS = 12  # about half a second where they are 2048 x 2048


def check_truth(records: Sequence[ImageRecord]) -> None:
    """Refuses flow files that cannot be read and truth in a wrong unit; warns of unknown heights.

    Raises:
        InputError: naming the file, or the set where only all of it together is suspicious.
    """
    check_flows(records)
    check_heights(records)


def check_flows(records: Sequence[ImageRecord]) -> None:
    """Reads every flow file.

    Raises:
        InputError: one is no flow, or its scale cannot be, or those of all of them cannot.
    """
    tangents = []
    for record in records:
        if record.vflow is not None:
            scale_px_per_m, _ = read_vflow(record.vflow)
            if problem := scale_problem(scale_px_per_m, record.gsd_m):
                raise InputError(f"{record.vflow}: {problem}")
            tangents.append(scale_px_per_m * record.gsd_m)
    if problem := small_scales_problem(tangents):
        raise InputError(f"{_first(records)}: {problem}")


def check_heights(records: Sequence[ImageRecord]) -> None:
    """Counts the heights of a few maps, spread over the records.

    Raises:
        InputError: a map cannot be read, or the heights are in another unit.
    """
    sample = [record for record in spread(records, SAMPLED_MAPS) if record.agl is not None]
    counts = HeightCounts()
    unknown = [record.agl_file() for record in sample if not counts.add(_agl_cm(record))]
    if unknown:
        logger.warning(
            "%d of %d height maps looked at know no height at all, so nothing is learned from "
            "them, the first is %s; check how they were made",
            len(unknown),
            len(sample),
            unknown[0],
        )
    if problem := counts.problem():
        raise InputError(f"{_first(sample)}: in {len(sample)} height maps looked at {problem}")


def spread(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """Some records, spread over all of them and so over the cities."""
    step = max(1, len(records) // count)
    return list(records[::step][:count])


def _agl_cm(record: ImageRecord) -> NDArray[np.uint16]:
    path = record.agl_file()
    assert path is not None
    return read_agl_cm(path)


def _first(records: Sequence[ImageRecord]) -> str:
    return str(records[0].csv_file if records[0].row else records[0].rgb.parent)
