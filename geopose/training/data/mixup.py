"""Mixup of pairs of samples: inputs are blended, the losses against both targets too.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018). Targets are not blended, because
heights hold no-data and directions are unit vectors; blending the losses is the same idea.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from geopose.keys import INPUT_GROUND_SAMPLE_DISTANCE, INPUT_IMAGE_KEY
from geopose.system.devices import sent

MIXUP_PARTNER = "MIXUP_PARTNER"
MIXUP_SHARE = "MIXUP_SHARE"


def mix_batch(batch: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """A batch whose images and gsd are blended with those of a random partner in the batch.

    Args:
        batch: a training batch with the keys of geopose.keys.
        alpha: both parameters of the Beta distribution of the blend; > 0.
    """
    images, gsd = batch[INPUT_IMAGE_KEY], batch[INPUT_GROUND_SAMPLE_DISTANCE]
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = sent(torch.randperm(len(images)), images.device)
    return {
        **batch,
        INPUT_IMAGE_KEY: share * images + (1.0 - share) * images[partner],
        INPUT_GROUND_SAMPLE_DISTANCE: share * gsd + (1.0 - share) * gsd[partner],
        MIXUP_PARTNER: partner,
        MIXUP_SHARE: share,
    }


def mixed_loss(
    criterion: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]],
    batch: Mapping[str, Any],
) -> dict[str, Tensor]:
    """The losses of a batch that also holds the outputs; blended if the batch was mixed."""
    losses = criterion(batch, batch)
    if MIXUP_PARTNER not in batch:
        return losses
    partner, share = batch[MIXUP_PARTNER], batch[MIXUP_SHARE]
    other = {
        key: value[partner] if isinstance(value, Tensor) and key.startswith("TARGET_") else value
        for key, value in batch.items()
    }
    others = criterion(other, other)
    return {key: share * losses[key] + (1.0 - share) * others[key] for key in losses}
