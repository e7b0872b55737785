"""The official score of validation, as metrics of the epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from catalyst.core.callback import IMetricCallback
from torch import Tensor

from geopose.distributed import gather_objects, together
from geopose.keys import (
    INPUT_CITY_NAME,
    INPUT_IMAGE_ID_KEY,
    OUTPUT_AGL_MASK,
    OUTPUT_VFLOW_ANGLE,
    OUTPUT_VFLOW_SCALE,
    TARGET_AGL_MASK,
    TARGET_VFLOW_ANGLE,
    TARGET_VFLOW_SCALE,
)
from geopose.metrics import ScoreAccumulator
from geopose.training.callbacks.score_sums import Truth, image_sums, state_of, truth_of

_PREDICTED = (OUTPUT_AGL_MASK, OUTPUT_VFLOW_SCALE, OUTPUT_VFLOW_ANGLE)
_TRUE = (TARGET_AGL_MASK, TARGET_VFLOW_SCALE, TARGET_VFLOW_ANGLE)


class ScoreCallback(IMetricCallback):
    """The official score over the validation images, in double precision, each counted once.

    Sums are made on the device and read once a loader, so that nothing waits for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._truths: dict[str, Truth] = {}  # by image, for every validation of the run

    def on_loader_start(self, runner: Any) -> None:
        """Starts empty."""
        self._waiting: list[tuple[str, Tensor]] = []  # city and sums of every image

    def on_batch_end(self, runner: Any) -> None:
        """Adds every image of a validation batch."""
        if runner.is_train_loader:
            return
        batch = runner.batch
        for i, city in enumerate(batch[INPUT_CITY_NAME]):
            predicted, true = ([batch[key][i] for key in keys] for keys in (_PREDICTED, _TRUE))
            name = str(batch[INPUT_IMAGE_ID_KEY][i])
            truth = self._truths.get(name) or truth_of(true[0])
            self._truths[name] = truth
            self._waiting.append((city, image_sums(predicted, true, truth)))

    def on_loader_end(self, runner: Any) -> None:
        """`metrics/mean_r2` (the score), its two halves, and the values of every city."""
        if runner.is_train_loader:
            return
        total = ScoreAccumulator()
        for state in gather_objects(together(self._own).state()):
            total.merge(state)
        runner.loader_metrics.update(flat_metrics(total.result()))

    def _own(self) -> ScoreAccumulator:
        """The score of this process's images."""
        score = ScoreAccumulator()
        if self._waiting:
            numbers = torch.stack([sums for _, sums in self._waiting]).tolist()
            for (city, _), row in zip(self._waiting, numbers, strict=True):
                score.merge(state_of(city, row))
        return score


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """A score as evaluate.py writes it, as `metrics/...` scalars for logs and checkpoints."""
    cities = result["cities"]
    flat = {"metrics/mean_r2": result["score"]}
    for name in ("agl_r2", "vflow_r2"):
        flat[f"metrics/{name}"] = sum(city[name] for city in cities.values()) / len(cities)
    for city, values in cities.items():
        flat[f"metrics/{city}/score"] = values["score"]
        for kind in ("mean", "rms"):
            flat |= {f"metrics/{city}/{kind}/{key}": v for key, v in values[kind].items()}
    return flat
