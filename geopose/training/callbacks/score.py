"""The official score of validation, as metrics of the epoch."""

from collections.abc import Mapping
from typing import Any

from catalyst.core.callback import IMetricCallback
from torch import Tensor

from geopose.distributed import gather_objects
from geopose.keys import (
    INPUT_CITY_NAME,
    OUTPUT_AGL_MASK,
    OUTPUT_VFLOW_ANGLE,
    OUTPUT_VFLOW_SCALE,
    TARGET_AGL_MASK,
    TARGET_VFLOW_ANGLE,
    TARGET_VFLOW_SCALE,
)
from geopose.metrics import ScoreAccumulator


class ScoreCallback(IMetricCallback):
    """The official score over the validation images, in double precision, each counted once."""

    def on_loader_start(self, runner: Any) -> None:
        """Starts empty."""
        self._score = ScoreAccumulator()

    def on_batch_end(self, runner: Any) -> None:
        """Adds every image of a validation batch."""
        if runner.is_train_loader:
            return
        batch = {key: _to_numpy(value) for key, value in runner.batch.items()}
        for i, city in enumerate(batch[INPUT_CITY_NAME]):
            self._score.update(
                city,
                batch[OUTPUT_AGL_MASK][i, 0],
                float(batch[OUTPUT_VFLOW_SCALE][i, 0]),
                float(batch[OUTPUT_VFLOW_ANGLE][i, 0]),
                batch[TARGET_AGL_MASK][i, 0],
                float(batch[TARGET_VFLOW_SCALE][i, 0]),
                float(batch[TARGET_VFLOW_ANGLE][i, 0]),
            )

    def on_loader_end(self, runner: Any) -> None:
        """`metrics/mean_r2` (the score), its two halves, and the values of every city."""
        if runner.is_train_loader:
            return
        total = ScoreAccumulator()
        for state in gather_objects(self._score.state()):
            total.merge(state)
        runner.loader_metrics.update(flat_metrics(total.result()))


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


def _to_numpy(value: Any) -> Any:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
