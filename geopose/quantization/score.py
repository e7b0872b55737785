"""The official score of a network on images with truth, written and read as a submission is."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from geopose.data.layout import ImageRecord
from geopose.data.rgb import read_rgb
from geopose.evaluation import Images, Truth, score
from geopose.inference.predict.ensemble import PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.output.writer import check_misfits, to_centimetres, write_prediction
from geopose.system.progress import progress_bar


def with_truth(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Those whose heights and flow are known."""
    return [record for record in records if record.agl is not None and record.vflow is not None]


def score_on(member: nn.Module, records: Sequence[ImageRecord], tta: str | None) -> float:
    """The official score; NaN where the truth of a city does not vary.

    Args:
        member: as of an ensemble.
        records: images with truth.
        tta: name of the views.

    Raises:
        GeoposeError: a file that cannot be read, or a prediction that cannot be.
    """
    ensemble = PoseEnsemble([member], Tta.from_name(tta)).eval()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        for number, record in enumerate(progress_bar(records, desc="predict", unit="image")):
            rgb = torch.from_numpy(read_rgb(record.rgb_file())).permute(2, 0, 1)[None]
            found = ensemble(rgb.contiguous(), torch.tensor([[record.gsd_m]]))
            heights = to_centimetres(found.agl_m)
            check_misfits(heights.misfits[0], rgb.shape[-1], record.where)
            write_prediction(
                Path(name),
                f"{number}_RGB",
                heights.agl_cm[0].numpy().astype("uint16"),
                float(found.scale_px_per_m[0]),
                float(found.angle_rad[0]),
            )
        truth = [
            Truth(str(number), record.city, record.agl, record.vflow, record.rgb)
            for number, record in enumerate(records)
            if record.agl is not None and record.vflow is not None
        ]
        return float(score(Images(Path(name), truth, ""))["score"])
