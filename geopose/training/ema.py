"""Moving average of the weights, kept beside the network that is trained.

timm's ModelEmaV3 does the averaging, of parameters and BatchNorm statistics. The average starts
with the first update and lengthens with the run (decay 1 - n^(-2/3) after n updates, at most the
configured one), so that short runs are not held back by their random start.
"""

from timm.utils import ModelEmaV3
from torch import nn


def build_ema(network: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """The average of a network's weights; None = none is asked for.

    Args:
        network: on its device, with the weights that the run starts from.
        decay: share of the old average in each update, 0..1.
    """
    return None if decay is None else ModelEmaV3(network, decay=decay, use_warmup=True)
