"""The official score: predicted and true poses in, R2 and errors per city out, all float64.

Sums are kept as (count, mean, sum of squared deviations) and merged with Chan's update, so that
images, shards and processes can be combined in any order and far-from-zero heights lose no digits.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopose.errors import InputError, RunError
from geopose.geometry import angle_difference, angle_to_vector

PIXELS_AT_ONCE = 1 << 17  # float64 temporaries of one step stay in the cache
ERROR_NAMES = ("angle_deg", "scale_px_per_m", "mag_px", "epe_px", "agl_m")
_PER_IMAGE = ("angle_deg", "scale_px_per_m")
# Truth whose standard deviation is below this share of its mean is constant up to rounding.
_CONSTANT = 1e-10


class _Moments:
    """Count, mean and sum of squared deviations of a stream of numbers."""

    def __init__(self, count: float = 0.0, mean: float = 0.0, m2: float = 0.0) -> None:
        self.count, self.mean, self.m2 = float(count), float(mean), float(m2)

    def merge(self, other: "_Moments") -> None:
        """Adds another stream (Chan, Golub, LeVeque 1979)."""
        if other.count == 0.0:
            return
        count = self.count + other.count
        delta = other.mean - self.mean
        self.mean += delta * (other.count / count)
        self.m2 += other.m2 + delta * delta * (self.count * other.count / count)
        self.count = count


def _moments_of(values: NDArray[np.float64]) -> _Moments:
    mean = float(values.mean())
    deviations = values - mean
    return _Moments(values.size, mean, float(deviations @ deviations))


def _flow_moments(agl: _Moments, scale_px_per_m: float, direction: NDArray) -> _Moments:
    """Moments of both flow components pooled, which are `agl * scale` times a constant each."""
    x, y = (float(scale_px_per_m * component) for component in direction)
    pooled = _Moments(agl.count, x * agl.mean, x * x * agl.m2)
    pooled.merge(_Moments(agl.count, y * agl.mean, y * y * agl.m2))
    return pooled


class _City:
    """What is remembered of one city; every field is a plain sum or a _Moments."""

    def __init__(self) -> None:
        self.images = 0.0
        self.agl_truth = _Moments()
        self.flow_truth = _Moments()
        self.sums = dict.fromkeys(ERROR_NAMES, 0.0)
        self.squares = dict.fromkeys(ERROR_NAMES, 0.0)

    def add_error(self, name: str, errors: NDArray[np.float64]) -> None:
        """Adds absolute errors and their squares."""
        self.sums[name] += float(errors.sum())
        self.squares[name] += float(errors @ errors)

    def merge(self, other: "_City") -> None:
        """Adds another part of the same city."""
        self.images += other.images
        self.agl_truth.merge(other.agl_truth)
        self.flow_truth.merge(other.flow_truth)
        for name in ERROR_NAMES:
            self.sums[name] += other.sums[name]
            self.squares[name] += other.squares[name]

    def state(self) -> dict[str, Any]:
        """Plain numbers that `from_state` reads."""
        return {
            "images": self.images,
            "agl_truth": list(vars(self.agl_truth).values()),
            "flow_truth": list(vars(self.flow_truth).values()),
            "sums": dict(self.sums),
            "squares": dict(self.squares),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "_City":
        """The inverse of `state`."""
        city = cls()
        city.images = float(state["images"])
        city.agl_truth = _Moments(*state["agl_truth"])
        city.flow_truth = _Moments(*state["flow_truth"])
        city.sums = dict(state["sums"])
        city.squares = dict(state["squares"])
        return city

    def result(self) -> dict[str, Any]:
        """R2 values, and mean and RMS of every error."""
        agl_r2 = _r_squared(self.squares["agl_m"], self.agl_truth)
        vflow_r2 = _r_squared(self.squares["epe_px"], self.flow_truth)
        counts = {n: self.images if n in _PER_IMAGE else self.agl_truth.count for n in ERROR_NAMES}
        return {
            "agl_r2": agl_r2,
            "vflow_r2": vflow_r2,
            "score": (agl_r2 + vflow_r2) / 2.0,
            "mean": {n: _ratio(self.sums[n], counts[n]) for n in ERROR_NAMES},
            "rms": {n: math.sqrt(_ratio(self.squares[n], counts[n])) for n in ERROR_NAMES},
        }


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


def _r_squared(sse: float, truth: _Moments) -> float:
    """1 - SSE / variation of the truth; NaN where the truth does not vary (R2 is undefined)."""
    if truth.m2 <= truth.count * (_CONSTANT * truth.mean) ** 2:
        return math.nan
    return 1.0 - sse / truth.m2


def _chunks(
    predicted: NDArray, truth: NDArray
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Valid (predicted, true) heights as float64, a bounded number of pixels at a time."""
    predicted, truth = predicted.reshape(-1), truth.reshape(-1)
    for start in range(0, truth.size, PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        valid = ~np.isnan(truth[part])
        if valid.any():
            yield predicted[part][valid].astype(np.float64), truth[part][valid].astype(np.float64)


class ScoreAccumulator:
    """Collects images city by city and gives the score.

    R2 = 1 - SSE / sum((truth - mean)^2) over all valid pixels of all images of a city, once for
    AGL and once for both flow components pooled under one mean; the city's score is the mean of the
    two and the final score the mean over cities. Errors are absolute values: of angle (0..180
    degrees) and scale one an image, of magnitude, end point and AGL one a valid pixel.
    """

    def __init__(self) -> None:
        self._cities: dict[str, _City] = {}

    def update(
        self,
        city: str,
        pred_agl_m: ArrayLike,
        pred_scale: float,
        pred_angle: float,
        true_agl_m: ArrayLike,
        true_scale: float,
        true_angle: float,
    ) -> None:
        """Adds one image.

        Args:
            city: whose pixels these are.
            pred_agl_m: H x W metres, finite in every pixel.
            pred_scale: pixels per metre. pred_angle: radians.
            true_agl_m: H x W metres, NaN = unknown (an image may be unknown altogether).
            true_scale: pixels per metre. true_angle: radians.

        Raises:
            InputError: the two height maps differ in shape, or a true value is infinite.
            RunError: a predicted value is NaN or infinite.
        """
        predicted, truth = np.asarray(pred_agl_m), np.asarray(true_agl_m)
        if predicted.shape != truth.shape:
            raise InputError(
                f"{city}: predicted height is {predicted.shape}, true height {truth.shape}"
            )
        if not (math.isfinite(true_scale) and math.isfinite(true_angle)) or np.isinf(truth).any():
            raise InputError(f"{city}: the truth holds a value that is not finite")
        if not (math.isfinite(pred_scale) and math.isfinite(pred_angle)):
            raise RunError(f"{city}: predicted scale {pred_scale} or angle {pred_angle} not finite")
        if not np.isfinite(predicted).all():
            raise RunError(f"{city}: the predicted height is not finite in every pixel")
        entry = self._cities.setdefault(city, _City())
        entry.images += 1
        degrees = np.degrees(angle_difference(float(pred_angle), float(true_angle)))
        entry.add_error("angle_deg", np.atleast_1d(degrees))
        entry.add_error("scale_px_per_m", np.atleast_1d(abs(float(pred_scale) - float(true_scale))))
        true_direction = angle_to_vector(float(true_angle))
        pred_flow = float(pred_scale) * angle_to_vector(float(pred_angle))
        true_flow = float(true_scale) * true_direction
        for p, t in _chunks(predicted, truth):
            moments = _moments_of(t)
            entry.agl_truth.merge(moments)
            entry.flow_truth.merge(_flow_moments(moments, float(true_scale), true_direction))
            entry.add_error("agl_m", np.abs(p - t))
            entry.add_error("mag_px", np.abs(p * float(pred_scale) - t * float(true_scale)))
            x, y = (p * pred_flow[axis] - t * true_flow[axis] for axis in (0, 1))
            entry.add_error("epe_px", np.hypot(x, y))

    def state(self) -> dict[str, dict[str, Any]]:
        """Everything collected so far as plain numbers (JSON, pickle, gather)."""
        return {name: city.state() for name, city in self._cities.items()}

    def merge(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds what another accumulator's `state()` holds; the order of merges does not matter."""
        for name, part in state.items():
            self._cities.setdefault(name, _City()).merge(_City.from_state(part))

    def result(self) -> dict[str, Any]:
        """`{"score", "cities": {CITY: {agl_r2, vflow_r2, score, mean: {...}, rms: {...}}}}`.

        NaN stands where a number is undefined: an R2 whose truth does not vary (or has no valid
        pixel), and every score that depends on it.
        """
        cities = {name: self._cities[name].result() for name in sorted(self._cities)}
        scores = [city["score"] for city in cities.values()]
        return {"score": float(np.mean(scores)) if scores else math.nan, "cities": cities}
