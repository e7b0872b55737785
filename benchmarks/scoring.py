"""What a checkpoint says of images whose truth is known, and the figures that follow from it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from geopose.checkpoints.load import load_model
from geopose.data.heights import read_agl_m
from geopose.data.layout import ImageRecord
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.geometry import angle_difference
from geopose.inference.predict.ensemble import Member, check_views
from geopose.inference.predict.tta import Tta
from geopose.metrics import ScoreAccumulator
from geopose.output.preview import Pose


@dataclass(frozen=True)
class View:
    """An image with its truth."""

    name: str
    rgb: NDArray[np.uint8]
    gsd_m: float
    truth: Pose
    city: str = ""


def read_views(records: Iterable[ImageRecord]) -> Iterator[View]:
    """The views of a data set, one in memory at a time."""
    for record in records:
        agl = record.agl_file()
        assert agl is not None
        assert record.vflow is not None
        truth = Pose(read_agl_m(agl), *read_vflow(record.vflow))
        yield View(record.image_id, read_rgb(record.rgb_file()), record.gsd_m, truth, record.city)


def predict(
    checkpoint: Path, views: Iterable[View], tta: str | None, device: str = "cpu"
) -> Iterator[tuple[View, Pose]]:
    """Every view, and what a checkpoint says of it.

    Args:
        checkpoint: the file.
        views: the images.
        tta: as in an inference config.
        device: where the network computes.
    """
    member, mean = Member(load_model(checkpoint)).eval().to(device), Tta.from_name(tta)
    check_views(member, mean)
    for view in views:
        image = torch.from_numpy(np.ascontiguousarray(view.rgb.transpose(2, 0, 1)))[None]
        gsd_m = torch.tensor([[view.gsd_m]])
        with torch.inference_mode():
            said = mean(member, image.to(device), gsd_m.to(device))
        agl_m = said.agl_m[0, 0].float().cpu().numpy()
        yield view, Pose(agl_m, float(said.scale_px_per_m), float(said.angle_rad))


@dataclass
class Figures:
    """Collects poses beside the truth; figures are the challenge's, means over cities."""

    score: ScoreAccumulator = field(default_factory=ScoreAccumulator)
    _angles: list[float] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)

    def update(self, view: View, pose: Pose) -> None:
        """Adds one view."""
        true = view.truth
        sure = (true.agl_m, true.scale_px_per_m, true.angle_rad)
        self.score.update(view.city, pose.agl_m, pose.scale_px_per_m, pose.angle_rad, *sure)
        degrees = math.degrees(float(angle_difference(pose.angle_rad, true.angle_rad)))
        self._angles.append(degrees)
        self._weights.append(true.scale_px_per_m)

    def result(self) -> dict[str, float]:
        """The columns of one row, as they stand in a CSV file."""
        found = self.score.result()
        cities = list(found["cities"].values())

        def mean_of(name: str) -> float:
            return float(np.mean([city[name] for city in cities]))

        def error(name: str) -> float:
            return float(np.mean([city["mean"][name] for city in cities]))

        return {
            "images": len(self._angles),
            "score": found["score"],
            "agl_r2": mean_of("agl_r2"),
            "flow_r2": mean_of("vflow_r2"),
            "angle_deg": error("angle_deg"),
            "angle_deg_by_scale": float(np.average(self._angles, weights=self._weights)),
            "scale_px_per_m": error("scale_px_per_m"),
            "agl_m": error("agl_m"),
        }
