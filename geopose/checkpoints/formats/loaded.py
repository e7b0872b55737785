"""What reading a checkpoint gives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from geopose.checkpoints.formats.facts import (
    LABELS_CONVERTED,
    NO_GAINS,
    Gains,
    common_gsd_of,
    downsample_of,
    gains_of,
    gsd_range_of,
)
from geopose.errors import InputError
from geopose.models.build import normalization
from geopose.models.normalization import IMAGENET, Normalization


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference and what its checkpoint says about its input and output.

    Attributes:
        model: in eval mode, on the CPU, float32.
        config: the full training config from the file.
        channel_order: "rgb" or "bgr", the order of the planes it was trained on.
        downsample: images are reduced by this factor before the model (1 = not).
        scale_is_downsampled: with downsample > 1, whether scale and gsd belong to the reduced image
            (trained here) or to the full one (published checkpoints).
        source: file name(s), for messages.
        gsd_range_m: least and largest gsd of the images that it was trained on, metres per pixel
            of the image as given, before any reduction; None = unknown.
        normalization: of its input.
        gains: what heights and lengths of flow are multiplied by after the model.
        gsd_m: metres per pixel of what the network is shown, whatever its images have; None = they
            keep theirs.
    """

    model: nn.Module
    config: Mapping[str, Any]
    channel_order: str
    downsample: int
    scale_is_downsampled: bool
    source: str
    gsd_range_m: tuple[float, float] | None = None
    normalization: Normalization = IMAGENET
    gains: Gains = NO_GAINS
    gsd_m: float | None = None

    @classmethod
    def from_facts(cls, model: nn.Module, facts: Mapping[str, Any], source: str) -> "LoadedModel":
        """A network and what `read_facts` says of its file; InputError if that cannot be."""
        return cls(
            model,
            facts["checkpoint_data"]["config"],
            facts["channel_order"],
            downsample_of(facts, source),
            facts.get("label_downsample") == LABELS_CONVERTED,
            source,
            gsd_range_of(facts, source),
            normalization(facts["checkpoint_data"]["config"]["model"]),
            gains_of(facts, source),
            common_gsd_of(facts, source),
        )

    def reduced_by(self, downsample: int) -> "LoadedModel":
        """The same network behind another reduction; it knows what it sees, not what is given.

        Raises:
            InputError: it is shown one gsd, to which all images are brought.
        """
        if self.gsd_m is not None:
            raise InputError(
                f"{self.source}: downsample is {downsample}, and images are brought to "
                f"{self.gsd_m:g} m per pixel for this network; leave downsample out"
            )
        known = self.gsd_range_m
        if known is not None:
            least, largest = (gsd_m * self.downsample / downsample for gsd_m in known)
            known = least, largest
        return replace(self, downsample=downsample, gsd_range_m=known)
