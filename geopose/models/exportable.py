"""The network in the form that exchange formats and other engines take: a tuple comes out."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from geopose import keys
from geopose.geometry import vector_to_angle

INPUTS = ("image", "gsd")
OUTPUTS = {
    "agl": keys.OUTPUT_AGL_MASK,
    "magnitude": keys.OUTPUT_MAGNITUDE_MASK,
    "scale": keys.OUTPUT_VFLOW_SCALE,
    "direction": keys.OUTPUT_VFLOW_DIRECTION,
}


class Traceable(nn.Module):
    """A copy of the network in which nothing depends on the size of the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, Conv2dSame):
                self.model.set_submodule(name, _FixedPadding(module))


class ExportableNetwork(Traceable):
    """A copy of the network whose outputs come in the order of `OUTPUTS`."""

    def forward(self, image: Tensor, gsd: Tensor) -> tuple[Tensor, ...]:
        """Outputs as a tuple."""
        output = self.model(image, gsd)
        return tuple(output[key] for key in OUTPUTS.values())


class ExportableHeads(Traceable):
    """A copy of the network that stops at its heads: what they give, without the Nones."""

    def forward(self, image: Tensor, gsd: Tensor) -> tuple[Tensor, ...]:
        """The tensors of `HeadOutputs`."""
        return tuple(x for x in self.model.heads(image, gsd) if x is not None)  # type: ignore[operator, union-attr]


class _FixedPadding(nn.Module):
    """TensorFlow's "same" convolution for sizes that its stride divides, as in a padded image.

    The padding is then always the same. Computed from each map's size, it would take the exporter
    minutes to follow through a large encoder.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv
        self.padding: list[int] = []
        for axis in (1, 0):
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            total = max(0, reach + 1 - conv.stride[axis])
            self.padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        """Pads and convolves."""
        c = self.conv
        x = F.pad(x, self.padding)
        return F.conv2d(x, c.weight, c.bias, c.stride, 0, c.dilation, c.groups)


def named_outputs(found: Sequence[np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """What an engine gave for `OUTPUTS`, as the network itself would have named it."""
    outputs = {
        key: torch.from_numpy(np.ascontiguousarray(value)).to(device)
        for key, value in zip(OUTPUTS.values(), found, strict=True)
    }
    direction = outputs[keys.OUTPUT_VFLOW_DIRECTION]
    outputs[keys.OUTPUT_VFLOW_ANGLE] = vector_to_angle(direction)[:, None]
    return outputs
