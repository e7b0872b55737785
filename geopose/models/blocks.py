"""Small layers of the decoder and the heads: feature maps in, feature maps out.

Parameter names are those of the published checkpoints (after `geopose.models.legacy`), so they are
part of the file format. BatchNorm epsilon is torch's 1e-5 throughout.
"""

from collections.abc import Callable
from functools import partial

import torch
from pytorch_toolbelt.modules.dsconv import DepthwiseSeparableConv2d
from pytorch_toolbelt.modules.upsample import AbstractResizeLayer
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "swish": partial(nn.SiLU, inplace=True),
    "hard_swish": partial(nn.Hardswish, inplace=True),
    "mish": partial(nn.Mish, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "selu": partial(nn.SELU, inplace=True),
    "gelu": nn.GELU,
}


def activation_layer(name: str) -> nn.Module:
    """A new activation by name; ValueError lists the known ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r} (known: {', '.join(sorted(ACTIVATIONS))})")
    return ACTIVATIONS[name]()


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """3 x 3 convolution that keeps the map's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear with aligned corners, the only resize that the networks use."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class BilinearUpsample(AbstractResizeLayer):
    """N x C x H x W -> N x C x 2H x 2W."""

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        super().__init__()
        self.out_channels = in_channels

    def forward(self, x: Tensor, output_size: torch.Size) -> Tensor:
        """Resizes to `output_size` (H, W)."""
        return resize(x, output_size)


class NearestUpsample(AbstractResizeLayer):
    """N x C x H x W -> N x C x 2H x 2W, each value repeated: the cheapest of all."""

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        super().__init__()
        self.out_channels = in_channels

    def forward(self, x: Tensor, output_size: torch.Size) -> Tensor:
        """Resizes to `output_size` (H, W)."""
        return F.interpolate(x, size=output_size, mode="nearest")


class ResidualDeconvolution(AbstractResizeLayer):
    """N x C x H x W -> N x C/4 x 2H x 2W: transposed convolution plus a bilinear shortcut.

    The shortcut is the mean over each group of 4 consecutive channels. It is taken before the
    bilinear x2 and not after: both are linear and act on different axes, so the result is the same,
    for a quarter of the work.
    """

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        super().__init__()
        if in_channels % 4 or scale_factor != 2:
            raise ValueError(
                "upsample 'rdtsc' needs channels divisible by 4 and a step of x2, got "
                f"{in_channels} channels and x{scale_factor}"
            )
        self.out_channels = in_channels // 4
        self.conv = nn.ConvTranspose2d(
            in_channels, self.out_channels, kernel_size=3, stride=2, padding=1, output_padding=1
        )

    def forward(self, x: Tensor, output_size: torch.Size | None = None) -> Tensor:
        """Always exactly doubles; `output_size` is there because the decoder passes it."""
        up = self.conv(x)
        shortcut = x.unflatten(1, (self.out_channels, 4)).mean(dim=2)
        return up + resize(shortcut, up.shape[-2:])


class UnetBlock(nn.Module):
    """(3x3 convolution, BN, activation) twice."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = activation_layer(activation)
        self.conv2 = conv3x3(out_channels, out_channels, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x H x W."""
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))


class ResidualUnetBlock(nn.Module):
    """A 1x1 shortcut added to separable 3x3, full 3x3, separable 3x3 (each with BN, activation)."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__()
        self.identity = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.conv1 = DepthwiseSeparableConv2d(in_channels, out_channels, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = activation_layer(activation)
        self.conv2 = conv3x3(out_channels, out_channels, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = activation_layer(activation)
        self.conv3 = DepthwiseSeparableConv2d(out_channels, out_channels, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.act3 = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x H x W."""
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.act3(self.norm3(self.conv3(y)))
        return self.identity(x) + y


class DenseUnetBlock(nn.Module):
    """Two residual blocks, the second fed with the input and the first one's output."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__()
        self.block1 = ResidualUnetBlock(in_channels, out_channels, activation)
        self.block2 = ResidualUnetBlock(in_channels + out_channels, out_channels, activation)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x H x W."""
        return self.block2(torch.cat([x, self.block1(x)], dim=1))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection; a shortcut where the channels agree."""

    EXPANSION = 2

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__()
        wide = in_channels * self.EXPANSION
        self.conv1 = nn.Conv2d(in_channels, wide, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.act1 = activation_layer(activation)
        self.conv2 = nn.Conv2d(wide, wide, kernel_size=3, padding=1, groups=wide, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.act2 = activation_layer(activation)
        self.conv3 = nn.Conv2d(wide, out_channels, kernel_size=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.has_shortcut = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x H x W."""
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return x + y if self.has_shortcut else y


class InvertedUnetBlock(nn.Sequential):
    """Two inverted residual blocks: few parameters and operations for their width."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__(
            InvertedResidual(in_channels, out_channels, activation),
            InvertedResidual(out_channels, out_channels, activation),
        )
