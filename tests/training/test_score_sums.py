"""Sums of the score made on a device are those of the accumulator that evaluate.py uses."""

import math

import numpy as np
import pytest
import torch

from geopose.errors import InputError, RunError
from geopose.metrics import ScoreAccumulator
from geopose.training.callbacks.score_sums import image_sums, state_of, truth_of


def poses(seed: int, size: tuple[int, int], known: float) -> tuple[list, list]:
    generator = torch.Generator().manual_seed(seed)
    true = 3000.0 + 40.0 * torch.rand(1, *size, generator=generator)  # far from zero
    predicted = true + torch.randn(1, *size, generator=generator)
    true[torch.rand(1, *size, generator=generator) > known] = torch.nan
    numbers = torch.rand(4, 1, generator=generator)
    return [predicted, numbers[0], 6.2 * numbers[1]], [true, numbers[2], 6.2 * numbers[3]]


def sums(predicted: list, true: list) -> list[float]:
    return image_sums(predicted, true, truth_of(true[0])).tolist()


def test_the_score_is_that_of_the_accumulator() -> None:
    expected, found = ScoreAccumulator(), ScoreAccumulator()
    for seed, (city, size, known) in enumerate(
        [("A", (500, 400), 0.9), ("A", (30, 20), 1.0), ("B", (70, 50), 0.5), ("B", (9, 9), 0.0)]
    ):
        predicted, true = poses(seed, size, known)
        expected.update(
            city, predicted[0][0].numpy(), float(predicted[1]), float(predicted[2]),
            true[0][0].numpy(), float(true[1]), float(true[2]),
        )  # fmt: skip
        found.merge(state_of(city, sums(predicted, true)))
    for city, values in expected.result()["cities"].items():
        other = found.result()["cities"][city]
        for key in ("agl_r2", "vflow_r2", "score"):
            assert math.isclose(other[key], values[key], rel_tol=1e-10)
        for kind in ("mean", "rms"):
            assert other[kind] == pytest.approx(values[kind], rel=1e-11)


@pytest.mark.parametrize("place", ["height", "scale", "true height", "true scale"])
def test_what_is_not_finite_is_named(place: str) -> None:
    predicted, true = poses(0, (20, 30), 0.9)
    side = true if place.startswith("true") else predicted
    number = 0 if place.endswith("height") else 1
    side[number].view(-1)[0] = torch.inf
    with pytest.raises(InputError if side is true else RunError, match=r"JAX: .*finite"):
        state_of("JAX", sums(predicted, true))


def test_unknown_heights_hide_nothing_that_is_predicted_there() -> None:
    predicted, true = poses(0, (20, 30), 1.0)
    true[0][0, 3, 4], predicted[0][0, 3, 4] = torch.nan, torch.nan
    with pytest.raises(RunError, match="not finite in every pixel"):
        state_of("JAX", sums(predicted, true))


def test_sums_are_made_in_double_precision() -> None:
    predicted, true = poses(5, (300, 300), 1.0)
    numbers = image_sums(predicted, true, truth_of(true[0]))
    assert numbers.dtype == torch.float64
    error = np.abs(predicted[0].double().numpy() - true[0].double().numpy()).sum()
    assert math.isclose(float(numbers[4]), error, rel_tol=1e-12)
