"""The score: against a naive computation, by hand, and under every way of splitting the work."""

import json
import math
from typing import Any

import numpy as np
import pytest

from geopose.errors import InputError, RunError
from geopose.metrics import ScoreAccumulator


def image(rng: np.random.Generator, shape: tuple[int, int], offset_m: float = 0.0) -> tuple:
    """(pred_agl, pred_scale, pred_angle, true_agl, true_scale, true_angle) with some no-data."""
    truth = rng.gamma(2.0, 8.0, shape) + offset_m
    predicted = np.abs(truth + rng.normal(0, 2.0, shape)).astype(np.float32)
    truth[rng.random(shape) < 0.1] = np.nan
    scale, angle = rng.uniform(0.2, 2.0), rng.uniform(0, 2 * np.pi)
    noisy = scale * rng.uniform(0.9, 1.1), angle + rng.normal(0, 0.1)
    return (predicted, *noisy, truth.astype(np.float32), scale, angle)


def naive(images: list[tuple]) -> dict[str, float]:
    """The definition, literally: all pixels of a city in one array."""
    agl, flow, scales, angles = [], [], [], []
    for p, ps, pa, t, ts, ta in images:
        keep = ~np.isnan(t)
        p, t = p[keep].astype(float), t[keep].astype(float)
        agl.append((p, t))
        flow.append(
            [
                np.stack([v * s * np.sin(a), v * s * np.cos(a)])
                for v, s, a in ((p, ps, pa), (t, ts, ta))
            ]
        )
        scales.append(abs(ps - ts))
        angles.append(np.degrees(np.arccos(np.cos(pa - ta))))
    p, t = (np.concatenate([pair[i] for pair in agl]) for i in (0, 1))
    fp, ft = (np.concatenate([pair[i] for pair in flow], axis=1) for i in (0, 1))
    epe = np.sqrt(((fp - ft) ** 2).sum(axis=0))
    magnitude = np.abs(np.hypot(*fp) - np.hypot(*ft))
    return {
        "agl_r2": 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum(),
        "vflow_r2": 1 - ((fp - ft) ** 2).sum() / ((ft - ft.mean()) ** 2).sum(),
        "mean_mag_px": magnitude.mean(),
        "mean_epe_px": epe.mean(),
        "rms_epe_px": np.sqrt((epe**2).mean()),
        "mean_agl_m": np.abs(p - t).mean(),
        "rms_agl_m": np.sqrt(((p - t) ** 2).mean()),
        "mean_angle_deg": np.mean(angles),
        "rms_scale_px_per_m": np.sqrt(np.mean(np.square(scales))),
    }


def flat(city: dict[str, Any]) -> dict[str, float]:
    """A city's result with `mean_` and `rms_` prefixes instead of nesting."""
    nested = {f"{kind}_{k}": v for kind in ("mean", "rms") for k, v in city[kind].items()}
    return {"agl_r2": city["agl_r2"], "vflow_r2": city["vflow_r2"], **nested}


@pytest.mark.parametrize("offset_m", [0.0, 300.0])
def test_agrees_with_the_definition(offset_m: float) -> None:
    rng = np.random.default_rng(1)
    # The last one is larger than what is handled at once.
    images = [image(rng, shape, offset_m) for shape in [(40, 60), (31, 17), (400, 401)]]
    accumulator = ScoreAccumulator()
    for one in images:
        accumulator.update("ARG", *one)
    result = flat(accumulator.result()["cities"]["ARG"])
    for name, expected in naive(images).items():
        assert result[name] == pytest.approx(expected, rel=1e-10, abs=1e-12), name


def test_by_hand() -> None:
    # AGL: truth 0 and 10, errors 1 and 2: SSE 5, variation 50. Flow along x with scale 2, all right
    # in direction; y stays 0: truth x = 0, 20, y = 0, 0: mean 5, variation 25 + 225 + 50 = 300.
    truth = np.array([[0.0, 10.0, np.nan]])
    accumulator = ScoreAccumulator()
    accumulator.update("JAX", [[1.0, 12.0, 99.0]], 2.0, math.pi / 2, truth, 2.0, math.pi / 2)
    city = accumulator.result()["cities"]["JAX"]
    assert city["agl_r2"] == pytest.approx(1 - 5 / 50)
    assert city["vflow_r2"] == pytest.approx(1 - (2**2 + 4**2) / 300)
    assert city["score"] == pytest.approx((0.9 + 1 - 20 / 300) / 2)
    assert city["mean"]["mag_px"] == pytest.approx(3.0)
    assert city["rms"]["epe_px"] == pytest.approx(math.sqrt(10.0))
    assert city["mean"]["agl_m"] == pytest.approx(1.5)


def test_perfect_prediction_scores_one_and_cities_count_alike() -> None:
    rng = np.random.default_rng(2)
    accumulator = ScoreAccumulator()
    for name, count in (("ATL", 3), ("OMA", 1)):
        for _ in range(count):
            _, _, _, truth, scale, angle = image(rng, (20, 20))
            accumulator.update(name, np.nan_to_num(truth), scale, angle, truth, scale, angle)
    assert accumulator.result()["score"] == 1.0
    accumulator.update("JAX", [[5.0, 5.0]], 1.0, 0.0, [[0.0, 10.0]], 1.0, 0.0)  # AGL R2 is 0
    result = accumulator.result()
    assert result["score"] == pytest.approx((1 + 1 + result["cities"]["JAX"]["score"]) / 3)
    assert result["cities"]["JAX"]["agl_r2"] == 0.0


@pytest.mark.parametrize(
    ("predicted", "true", "degrees"),
    [(0.1, 2 * math.pi - 0.1, math.degrees(0.2)), (math.pi, 0.0, 180.0), (-1.0, 2.0, 171.887338)],
)
def test_angle_error_wraps(predicted: float, true: float, degrees: float) -> None:
    accumulator = ScoreAccumulator()
    accumulator.update("ARG", [[1.0, 2.0]], 1.0, predicted, [[1.0, 2.0]], 1.0, true)
    error = accumulator.result()["cities"]["ARG"]["mean"]["angle_deg"]
    assert error == pytest.approx(degrees, abs=1e-5)


def test_shards_in_any_order_give_the_same() -> None:
    rng = np.random.default_rng(3)
    images = [("ARG" if i % 3 else "ATL", image(rng, (30, 20 + i), 100.0 * i)) for i in range(9)]
    whole = ScoreAccumulator()
    shards = [ScoreAccumulator() for _ in range(4)]  # the last one stays empty
    for i, (city, one) in enumerate(images):
        whole.update(city, *one)
        shards[i % 3].update(city, *one)
    expected = whole.result()
    for order in ([0, 1, 2, 3], [3, 2, 0, 1], [1, 3, 0, 2]):
        merged = ScoreAccumulator()
        for i in order:
            merged.merge(json.loads(json.dumps(shards[i].state())))
        result = merged.result()
        assert result["score"] == pytest.approx(expected["score"], rel=1e-12)
        for city, values in expected["cities"].items():
            assert flat(result["cities"][city]) == pytest.approx(flat(values), rel=1e-12)


def test_image_without_truth_counts_for_angle_and_scale_only() -> None:
    accumulator = ScoreAccumulator()
    accumulator.update("ARG", [[0.0, 10.0]], 1.0, 0.0, [[0.0, 10.0]], 1.0, 0.0)
    accumulator.update("ARG", [[7.0, 7.0]], 1.5, 1.0, [[np.nan, np.nan]], 1.0, 0.0)
    city = accumulator.result()["cities"]["ARG"]
    assert city["score"] == 1.0
    assert city["mean"]["agl_m"] == 0.0
    assert city["mean"]["scale_px_per_m"] == pytest.approx(0.25)


@pytest.mark.parametrize("height_m", [0.0, 0.1, 12.34, np.nan])
def test_truth_that_does_not_vary_has_no_r2(height_m: float) -> None:
    truth = np.full((50, 50), height_m)
    accumulator = ScoreAccumulator()
    accumulator.update("ARG", np.nan_to_num(truth), 1.0, math.pi / 4, truth, 1.0, math.pi / 4)
    result = accumulator.result()
    assert math.isnan(result["cities"]["ARG"]["agl_r2"])
    assert math.isnan(result["cities"]["ARG"]["vflow_r2"])
    assert math.isnan(result["score"])


def test_nothing_seen_has_no_score() -> None:
    result = ScoreAccumulator().result()
    assert math.isnan(result["score"])
    assert result["cities"] == {}


@pytest.mark.parametrize(
    ("agl", "scale", "angle"),
    [([[np.nan, 1.0]], 1.0, 0.0), ([[1.0, np.inf]], 1.0, 0.0), ([[1.0, 1.0]], np.nan, 0.0),
     ([[1.0, 1.0]], 1.0, np.inf)],
)  # fmt: skip
def test_predictions_that_are_no_numbers_fail(agl: list, scale: float, angle: float) -> None:
    # Also where the truth is unknown: the first pixel has none.
    with pytest.raises(RunError, match="ARG"):
        ScoreAccumulator().update("ARG", agl, scale, angle, [[np.nan, 1.0]], 1.0, 0.0)


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"\(1, 3\)"):
        ScoreAccumulator().update("ARG", [[1.0, 1.0, 1.0]], 1.0, 0.0, [[1.0, 1.0]], 1.0, 0.0)
