"""Prediction panels of a validation batch, for TensorBoard."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from catalyst.core.callback import Callback
from numpy.typing import NDArray
from torch import Tensor

from geopose import keys
from geopose.distributed import is_main
from geopose.models.normalization import Normalization, denormalize_image
from geopose.output.preview import Pose, PreviewRow, render_preview

MAX_PANELS = 4  # an epoch


class PanelCallback(Callback):
    """Prediction panels of the first validation images, to TensorBoard."""

    def __init__(self, channel_order: str, normalization: Normalization) -> None:
        super().__init__(order=0)
        self._input = channel_order, normalization

    def on_batch_end(self, runner: Any) -> None:
        """One panel for each of the first few validation batches, on rank 0."""
        if runner.loader_key != "valid" or not is_main() or self._shown >= MAX_PANELS:
            return
        self._shown += 1
        name = str(runner.batch[keys.INPUT_IMAGE_ID_KEY][0])
        runner.log_image(tag=name, image=draw_panel(runner.batch, *self._input))

    def on_loader_start(self, runner: Any) -> None:
        """Counts anew."""
        self._shown = 0


def draw_panel(
    batch: Mapping[str, Any], channel_order: str, normalization: Normalization
) -> NDArray[np.uint8]:
    """Picture of the first sample of a batch: image, true and predicted height, both flows.

    Args:
        batch: with the network's outputs among its entries.
        channel_order: of the batch's images.
        normalization: likewise.

    Returns:
        H x W x 3 uint8 RGB.
    """
    image = batch[keys.INPUT_IMAGE_KEY][0].detach().cpu()
    row = PreviewRow(
        title=str(batch[keys.INPUT_IMAGE_ID_KEY][0]),
        rgb=denormalize_image(image, channel_order, normalization),
        true=_pose(
            batch[keys.TARGET_AGL_MASK],
            batch[keys.TARGET_VFLOW_SCALE],
            batch[keys.TARGET_VFLOW_ANGLE],
        ),
        predicted=_pose(
            batch[keys.OUTPUT_AGL_MASK],
            batch[keys.OUTPUT_VFLOW_SCALE],
            batch[keys.OUTPUT_VFLOW_ANGLE],
        ),
    )
    return render_preview([row])


def _pose(agl_m: Tensor, scale_px_per_m: Tensor, angle_rad: Tensor) -> Pose:
    heights = agl_m[0, 0].detach().float().cpu().numpy()
    return Pose(heights, float(scale_px_per_m[0, 0]), float(angle_rad[0, 0]))
