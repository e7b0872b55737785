"""A network that gives heights alone, as an .onnx file for Deepness, a plugin of QGIS.

The plugin cuts a layer into square tiles, hands over RGB from 0 to 1 (1 x 3 x S x S float32), and
takes one map (1 x 1 x S x S) of what it calls a regression: here heights in metres. What it knows
of a file it reads from the file's metadata, each value as JSON. Order of channels, normalisation,
reduction, gsd and calibration are inside of the network, so that versions of the plugin that know
nothing of `standardization_mean` see the same heights.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geopose import keys
from geopose.checkpoints.formats.facts import facts_to_text
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.checkpoints.formats.onnx_file import traced, write_onnx
from geopose.errors import InputError
from geopose.models.exportable import Traceable

logger = logging.getLogger(__name__)

TILE_PX = 512
_OVERLAP_PERCENT = 20  # of a tile: what is cut off at each side knows little of its surroundings
_ALIKE = 0.01  # by which a gsd may be off where there is only one
_FACTS = "geopose_facts"  # where the facts stand: not under the key of files that run here


class HeightNetwork(Traceable):
    """RGB from 0 to 1 in, heights in metres out, for images of one gsd."""

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: LoadedModel, gsd_m: float) -> None:
        super().__init__(loaded.model)
        self._is_bgr = loaded.channel_order == "bgr"
        self._factor = loaded.downsample
        self._gain = loaded.gains.agl
        self._gsd_m = gsd_m * (loaded.downsample if loaded.scale_is_downsampled else 1)
        for name, planes in zip(("mean", "std"), loaded.normalization.planes(), strict=True):
            self.register_buffer(name, planes, persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """N x 3 x S x S -> N x 1 x S x S; S must be a multiple of the reduction."""
        planes = ((rgb.flip(1) if self._is_bgr else rgb) - self.mean) / self.std
        if self._factor > 1:
            planes = F.avg_pool2d(planes, self._factor)
        gsd_m = torch.full((1, 1), self._gsd_m).expand(planes.shape[0], 1)
        agl_m: Tensor = self.model(planes, gsd_m)[keys.OUTPUT_AGL_MASK]  # type: ignore[operator]
        if self._gain != 1.0:
            agl_m = agl_m * self._gain
        if self._factor == 1:
            return agl_m
        factor = float(self._factor)
        return F.interpolate(agl_m, scale_factor=factor, mode="bilinear", align_corners=False)


def export_for_deepness(
    path: Path, loaded: LoadedModel, facts: Mapping[str, Any], gsd_m: float
) -> None:
    """Writes the file, atomically.

    Args:
        path: ends with .onnx.
        loaded: the network, on the CPU.
        facts: of its checkpoint, so that the file says where it is from.
        gsd_m: metres per pixel that the plugin is to bring images to.

    Raises:
        InputError: the network knows one gsd, and it is another.
        RunError: the network has a part that cannot be exported, or the file cannot be written.
    """
    if loaded.gsd_m is not None and abs(gsd_m / loaded.gsd_m - 1) > _ALIKE:
        raise InputError(
            f"{loaded.source}: images are brought to {loaded.gsd_m:g} m/px before this network, "
            f"and --gsd is {gsd_m:g}; give --gsd {loaded.gsd_m:g}"
        )
    known = loaded.gsd_range_m if loaded.gsd_m is None else None
    if known is not None and not known[0] <= gsd_m <= known[1]:
        logger.warning(
            "%s: was trained on images of %.3g to %.3g m/px; at %.3g it knows less",
            loaded.source, *known, gsd_m,
        )  # fmt: skip
    example = (torch.zeros(1, 3, TILE_PX, TILE_PX),)
    model = traced(HeightNetwork(loaded, gsd_m), example, ["rgb"], ["agl"], loaded.source)
    values = {
        "model_type": "Regressor",
        "class_names": {"0": "height_m"},
        "resolution": round(100 * gsd_m, 4),
        "tile_size": TILE_PX,
        "tiles_size": TILE_PX,
        "tiles_overlap": _OVERLAP_PERCENT,
        "standardization_mean": [0.0, 0.0, 0.0],
        "standardization_std": [1.0, 1.0, 1.0],
        "reg_output_scaling": 1.0,
    }
    metadata = {key: json.dumps(value) for key, value in values.items()}
    write_onnx(path, model, {**metadata, _FACTS: facts_to_text(facts)})
