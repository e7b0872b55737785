"""What one validation image adds to the official score, summed where the prediction is.

In: predicted and true poses on any device. Out: a few float64 numbers, still there, so that a GPU
goes on with the next image; later, on the host, what `geopose.metrics.ScoreAccumulator` merges.
Nothing here waits for the device.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geopose.errors import InputError, RunError
from geopose.geometry import angle_difference, angle_to_vector
from geopose.metrics import PIXELS_AT_ONCE


class Truth(NamedTuple):
    """True heights of an image: float64 scalars on its device.

    Attributes:
        pixels: number of valid ones. mean, m2: of their heights, and the sum of squared deviations.
        infinite: how many heights are infinite.
    """

    pixels: Tensor
    mean: Tensor
    m2: Tensor
    infinite: Tensor


_PIXEL_ERRORS = ("agl_m", "mag_px", "epe_px")
# What `image_sums` gives, in order.
_NAMES = (
    *Truth._fields,
    *(f"{kind}_{name}" for kind in ("sum", "square") for name in _PIXEL_ERRORS),
    "strange", "scale", "angle", "true_scale", "true_angle",
)  # fmt: skip


def _parts(*maps: Tensor) -> zip:
    """Maps in pieces whose float64 temporaries stay in a core's cache; on a GPU in one piece."""
    flat = [x.detach().reshape(-1) for x in maps]
    size = PIXELS_AT_ONCE if flat[0].device.type == "cpu" else flat[0].numel()
    return zip(*(x.split(max(1, size)) for x in flat), strict=True)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(dim=0)


def truth_of(agl_m: Tensor) -> Truth:
    """Moments of an image's true heights, any shape, NaN = unknown."""
    pieces = [part.double() for (part,) in _parts(agl_m)]
    count = _total([(~part.isnan()).sum().double() for part in pieces])
    mean = _total([part.nansum() for part in pieces]) / count
    m2 = _total([(part - mean).square().nansum() for part in pieces])
    return Truth(count, mean, m2, _total([part.isinf().sum().double() for part in pieces]))


def image_sums(predicted: Sequence[Tensor], true: Sequence[Tensor], truth: Truth) -> Tensor:
    """What an image adds to the score: float64 numbers, on its device.

    Args:
        predicted: heights in metres, scale in px/m, angle in radians; the latter of one element.
        true: the same; heights NaN where unknown.
        truth: of the true heights.
    """
    scale, angle = (x.detach().double().reshape(()) for x in predicted[1:])
    true_scale, true_angle = (x.double().reshape(()) for x in true[1:])
    flow, true_flow = scale * angle_to_vector(angle), true_scale * angle_to_vector(true_angle)
    sums, squares, strange = [], [], []
    for p, t in _parts(predicted[0], true[0]):
        strange.append((~p.isfinite()).sum().double())
        p, t = p.double(), t.double()  # an unknown height makes each error NaN, which is left out
        x, y = (p * flow[axis] - t * true_flow[axis] for axis in (0, 1))
        errors = torch.stack([(p - t).abs(), (p * scale - t * true_scale).abs(), torch.hypot(x, y)])
        sums.append(errors.nansum(dim=1))
        squares.append(errors.square().nansum(dim=1))
    numbers = torch.stack([*truth, *_total(sums), *_total(squares), _total(strange)])
    return torch.cat([numbers, torch.stack([scale, angle, true_scale, true_angle])])


def state_of(city: str, numbers: Sequence[float]) -> dict[str, dict[str, Any]]:
    """An image's sums, on the host, as `ScoreAccumulator.merge` reads them.

    Raises:
        InputError: the truth holds a value that is not finite.
        RunError: a prediction is not finite.
    """
    named = dict(zip(_NAMES, numbers, strict=True))
    _check(city, named)
    count = named["pixels"]
    mean = named["mean"] if count else 0.0
    x, y = named["true_scale"] * angle_to_vector(named["true_angle"])
    # Both components of the flow, pooled: each is the height times a constant.
    pooled_m2 = (x * x + y * y) * named["m2"] + count / 2.0 * ((x - y) * mean) ** 2
    errors = {
        "angle_deg": math.degrees(angle_difference(named["angle"], named["true_angle"])),
        "scale_px_per_m": abs(named["scale"] - named["true_scale"]),
    }
    pixels = {kind: {n: named[f"{kind}_{n}"] for n in _PIXEL_ERRORS} for kind in ("sum", "square")}
    state = {
        "images": 1.0,
        "agl_truth": [count, mean, named["m2"]],
        "flow_truth": [2.0 * count, float((x + y) / 2.0 * mean), float(pooled_m2)],
        "sums": {**errors, **pixels["sum"]},
        "squares": {**{n: e * e for n, e in errors.items()}, **pixels["square"]},
    }
    return {city: state}


def _check(city: str, named: Mapping[str, float]) -> None:
    true = named["true_scale"], named["true_angle"]
    if named["infinite"] or not all(map(math.isfinite, true)):
        raise InputError(f"{city}: the truth holds a value that is not finite")
    scale, angle = named["scale"], named["angle"]
    if not (math.isfinite(scale) and math.isfinite(angle)):
        raise RunError(f"{city}: predicted scale {scale} or angle {angle} not finite")
    if named["strange"]:
        raise RunError(f"{city}: the predicted height is not finite in every pixel")
