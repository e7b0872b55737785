"""A checkpoint and a user's images in, a file in 8 bits out; and what that changes in the score."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geopose.checkpoints.formats.int8_file import write_int8
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError, RunError
from geopose.inference.engines.openvino_engine import (
    GraphNetwork,
    HeadsGraph,
    graph_to_bytes,
    has_openvino,
    heads_graph,
)
from geopose.inference.engines.precision import FP32
from geopose.inference.predict.ensemble import Member, check_views
from geopose.inference.predict.tta import Tta
from geopose.quantization.calibration import Calibration, shuffled
from geopose.quantization.layers import not_in_8_bits, readable
from geopose.quantization.quantize import check_nncf, quantize
from geopose.quantization.score import score_on, with_truth
from geopose.words import MAX_DROP

logger = logging.getLogger(__name__)

_DIGITS = 5  # of a score that is kept


@dataclass(frozen=True)
class Options:
    """What the command's options choose.

    Attributes:
        data_dir: holds the images. layout: of it. split: "train" or "test".
        images: how many to calibrate on.
        side: in pixels; of larger images a part is taken for that.
        measured: how many images with truth to measure the score on, at most.
        tta: their views.
        max_drop: of the score; None = MAX_DROP where it can be measured.
    """

    data_dir: Path
    layout: str
    split: str
    images: int
    side: int
    measured: int
    tta: str | None
    max_drop: float | None


def write_quantized(
    path: Path, loaded: LoadedModel, facts: Mapping[str, Any], source: Mapping[str, str],
    options: Options,
) -> None:  # fmt: skip
    """Calibrates, quantises, measures and writes.

    Args:
        path: the .int8 file.
        loaded: the network; facts: of its checkpoint; source: its file and sha256.
        options: of the command.

    Raises:
        InputError: missing packages, no images, or a limit of the drop without truth.
        RunError: NNCF or OpenVINO cannot do it, or the score falls too far; nothing is written.
    """
    if not has_openvino():
        raise InputError("quantize needs the package openvino; pip install 'geopose[int8]'")
    check_nncf()
    check_views(loaded, Tta.from_name(options.tta))
    images = shuffled(read_split(options.data_dir, options.split, options.layout))
    calibrated, measured = _shares(images, options)
    heads = heads_graph(loaded.model)  # type: ignore[arg-type]
    before = _member(loaded, heads)
    calibration = Calibration(calibrated, before, options.side)
    logger.info("calibrating on %d %s images", len(calibrated), options.split)
    found = quantize(heads, calibration, loaded.source)
    after = _member(loaded, found)
    quantized = {
        "heads": list(heads.given),
        "stride": heads.stride,
        "head_stride": heads.head_stride,
        "source": dict(source),
        "calibration": {**calibration.describe(), "split": options.split},
        "float_layers": [readable(name) for name in not_in_8_bits(found.graph)],
        "score": _compare(before, after, measured, options, loaded.source),
        "versions": {name: version(name) for name in ("openvino", "nncf")},
    }
    count = sum(weights.numel() for weights in loaded.model.parameters())
    graph, weights = graph_to_bytes(found.graph)
    write_int8(path, graph, weights, {**facts, "parameters": count, "quantized": quantized})


def _shares(
    images: list[ImageRecord], options: Options
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """What to calibrate on, and what to measure on: other images, if there are any with truth."""
    calibrated = images[: options.images]
    known = with_truth(images[options.images :]) or with_truth(calibrated)
    measured = known[: options.measured]
    if options.max_drop is not None and not measured:
        raise InputError(
            f"--max-drop: no image of {options.data_dir} ({options.split}) has truth to measure "
            "the score on; leave it out, or choose --split train"
        )
    if len(calibrated) < options.images:
        logger.warning("only %d images are there to calibrate on", len(calibrated))
    return calibrated, measured


def _member(loaded: LoadedModel, heads: HeadsGraph) -> Member:
    return Member(replace(loaded, model=GraphNetwork(heads, FP32))).eval()


def _compare(
    before: Member, after: Member, measured: list[ImageRecord], options: Options, source: str
) -> dict[str, Any] | None:
    """The score in float32 and in 8 bits; None where there is no truth, or none that varies.

    Raises:
        RunError: it falls by more than it may.
    """
    if not measured:
        logger.warning("%s: the score was not measured, no image has truth", source)
        return None
    logger.info("measuring the score on %d images, views %s", len(measured), options.tta or "null")
    scores = [score_on(member, measured, options.tta) for member in (before, after)]
    if not all(map(math.isfinite, scores)):
        if options.max_drop is not None:
            raise InputError("--max-drop: the truth does not vary, so there is no score to compare")
        logger.warning("%s: the score was not measured, the truth does not vary", source)
        return None
    drop, most = scores[0] - scores[1], MAX_DROP if options.max_drop is None else options.max_drop
    logger.info("score %.5f in fp32, %.5f in int8: %+.5f", *scores, -drop)
    if drop > most:
        raise RunError(
            f"{source}: in int8 the score falls by {drop:.5f}, more than --max-drop {most:g}; "
            "nothing was written; use bf16, more --images, or a larger --max-drop"
        )
    named = {"before": scores[0], "after": scores[1]}
    return {
        **{key: round(value, _DIGITS) for key, value in named.items()},
        "images": len(measured),
        "views": options.tta or "null",
    }
