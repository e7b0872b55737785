"""Heads: feature maps and gsd in; height (m), magnitude (px), direction and scale out.

Height heads return maps at `stride` pixels a cell, both not negative unless a head is told to end
otherwise than with a ReLU; orientation heads return an `Orientation`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose.models.blocks import GsdConv, ResidualDeconvolution, activation_layer, conv3x3, resize

_START_BIAS = 1.0  # keeps the last ReLU alive at the start of training: a dead one never learns


def _stride_after(stride: int, doublings: int) -> int:
    """Pixels a cell after some doublings; ValueError where that is finer than the image."""
    if stride % 2**doublings:
        raise ValueError(
            f"{doublings} upsample blocks on a map of stride {stride} are finer than the image"
        )
    return stride // 2**doublings


def _last_conv(in_channels: int) -> nn.Conv2d:
    conv = conv3x3(in_channels, 1)
    nn.init.constant_(conv.bias, _START_BIAS)  # type: ignore[arg-type]
    return conv


class _UpsampledBranch(nn.Module):
    """One map of SimpleAGLHead: upsample once, then three 3x3 convolutions and a ReLU."""

    def __init__(self, channels: int, embedding_size: int, activation: str, uses_gsd: bool) -> None:
        super().__init__()
        self.uses_gsd = uses_gsd
        self.up = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=1), ResidualDeconvolution(channels)
        )
        self.conv1 = conv3x3(channels // 4, embedding_size)
        self.act1 = activation_layer(activation)
        width = embedding_size
        self.conv2 = GsdConv(width, width) if uses_gsd else conv3x3(width, width)
        self.act2 = activation_layer(activation)
        self.conv3 = _last_conv(embedding_size)

    def forward(self, x: Tensor, gsd_m: Tensor) -> Tensor:
        """N x C x H x W -> N x 1 x 2H x 2W."""
        x = self.act1(self.conv1(self.up(x)))
        x = self.act2(self.conv2(x, gsd_m) if self.uses_gsd else self.conv2(x))
        return F.relu(self.conv3(x))


class SimpleAGLHead(nn.Module):
    """Two separate branches on the finest decoder map, each upsampled once (published b7_unet).

    Args:
        channels: of the decoder's maps, fine to coarse. strides: likewise.
        embedding_size: channels of the branches.
        dropout_rate: of whole channels, before both branches.
        activation: between the convolutions.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        embedding_size: int = 128,
        dropout_rate: float = 0.0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.stride = _stride_after(strides[0], 1)
        self.dropout = nn.Dropout2d(dropout_rate)
        self.height = _UpsampledBranch(channels[0], embedding_size, activation, uses_gsd=True)
        self.magnitude = _UpsampledBranch(channels[0], embedding_size, activation, uses_gsd=False)

    def forward(self, maps: list[Tensor], gsd_m: Tensor) -> tuple[Tensor, Tensor | None]:
        """(height, magnitude), N x 1 maps at half the finest decoder map's stride."""
        x = self.dropout(maps[0])
        return self.height(x, gsd_m), self.magnitude(x, gsd_m)


def _upsample_stages(channels: int, count: int, activation: str) -> tuple[nn.Sequential, int]:
    """`count` times (1x1, residual deconvolution, 3x3, BN, activation), and the channels left."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, channels, kernel_size=1), ResidualDeconvolution(channels)]
        channels //= 4
        layers += [conv3x3(channels, channels, bias=False), nn.BatchNorm2d(channels)]
        layers.append(activation_layer(activation))
    return nn.Sequential(*layers), channels


class _ZeroSafeSqrt(nn.Module):
    """Square root whose gradient at zero, where a ReLU leaves many pixels, is zero and not NaN."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape; NaN below zero."""
        zero = x == 0
        return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


class _Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x.exp()


_TRANSFORMATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "sqrt": _ZeroSafeSqrt,
    "exp": _Exp,
}


def _last_layers(activation: str, transformation: str) -> nn.Sequential:
    """What turns the last convolution's numbers into heights or magnitudes."""
    if not isinstance(transformation, str) or transformation not in _TRANSFORMATIONS:
        known = ", ".join(_TRANSFORMATIONS)
        raise ValueError(f"unknown agl_transformation {transformation!r} (known: {known})")
    return nn.Sequential(activation_layer(activation), _TRANSFORMATIONS[transformation]())


class AGLHead(nn.Module):
    """Shared upsampling of the finest decoder map, then a small branch each (published b6).

    Args:
        channels: of the decoder's maps, fine to coarse. strides: likewise.
        num_upsample_blocks: doublings, each with a quarter of the channels.
        embedding_size: channels between the two convolutions of a branch; None = as many as arrive.
        dropout_rate: of whole channels, before the upsampling.
        activation: after every convolution but the last.
        agl_activation: after the last convolution of both branches.
        agl_transformation: after that, of height and magnitude alike: identity, sqrt or exp.
        output_gain: factor on both outputs. Heights are tens of metres where networks start near
            1: a factor of about 10 spares a short training the climb.
    """

    predicts_magnitude = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_upsample_blocks: int = 1,
        embedding_size: int | None = None,
        dropout_rate: float = 0.0,
        activation: str = "silu",
        agl_activation: str = "relu",
        agl_transformation: str = "identity",
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride = _stride_after(strides[0], num_upsample_blocks)
        self.last = _last_layers(agl_activation, agl_transformation)
        self.output_gain = output_gain
        self.dropout = nn.Dropout2d(dropout_rate)
        self.upsample, width = _upsample_stages(channels[0], num_upsample_blocks, activation)
        inner = embedding_size or width

        def branch(first: nn.Conv2d) -> nn.Sequential:
            return nn.Sequential(first, activation_layer(activation), _last_conv(inner))

        self.height = branch(GsdConv(width, inner))
        if self.predicts_magnitude:
            self.magnitude = branch(conv3x3(width, inner))

    def forward(self, maps: list[Tensor], gsd_m: Tensor) -> tuple[Tensor, Tensor | None]:
        """(height, magnitude), N x 1 maps at the finest decoder stride / 2^num_upsample_blocks."""
        x = self.upsample(self.dropout(maps[0]))
        first, act, last = self.height
        height = self.last(last(act(first(x, gsd_m)))) * self.output_gain
        if not self.predicts_magnitude:
            return height, None
        return height, self.last(self.magnitude(x)) * self.output_gain


class OnlyAGLHead(AGLHead):
    """AGLHead without magnitude: it is height * scale of an orientation head that has a scale."""

    predicts_magnitude = False


class HyperColumnAGLHead(nn.Module):
    """3x3 convolutions on every decoder map, resized to the finest and summed, then ReLU.

    Args:
        channels: of the decoder's maps, fine to coarse. strides: likewise.
        dropout_rate: of whole channels, before the convolutions.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], dropout_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.stride = strides[0]
        self.dropout = nn.Dropout2d(dropout_rate)
        self.height = nn.ModuleList(GsdConv(c, 1) for c in channels)
        self.magnitude = nn.ModuleList(conv3x3(c, 1) for c in channels)
        for convs in (self.height, self.magnitude):
            nn.init.constant_(convs[0].bias, _START_BIAS)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor], gsd_m: Tensor) -> tuple[Tensor, Tensor | None]:
        """(height, magnitude), N x 1 maps at the finest decoder map's stride."""
        maps = [self.dropout(x) for x in maps]
        size = maps[0].shape[-2:]
        heights = [conv(x, gsd_m) for conv, x in zip(self.height, maps, strict=True)]
        magnitudes = [conv(x) for conv, x in zip(self.magnitude, maps, strict=True)]
        height, magnitude = (
            torch.stack([resize(x, size) for x in parts]).sum(dim=0)
            for parts in (heights, magnitudes)
        )
        return F.relu(height), F.relu(magnitude)


class Orientation(NamedTuple):
    """What an orientation head predicts for N images.

    Attributes:
        direction: N x 2, (sin a, cos a) of any length; None = `mean_direction` of the flow.
        scale: N x 1, pixels per metre; None = left to least squares.
        flow: N x 2 x h x w, the flow of every pixel in pixels (x, y); None = not predicted.
    """

    direction: Tensor | None
    scale: Tensor | None = None
    flow: Tensor | None = None


def mean_direction(flow: Tensor) -> Tensor:
    """The direction that N x 2 x h x w flow maps (pixels) agree on: N x 2, of length 0 to 1.

    The mean flow is divided by the mean length, so that agreeing pixels give a unit vector. Tall
    surfaces count more, as their flow is longer.
    """
    flow = flow.float()
    # Not torch's norm: its gradient at a zero vector is no number.
    length = (flow.square().sum(dim=1, keepdim=True) + 1e-6).sqrt().mean(dim=(2, 3))
    return flow.mean(dim=(2, 3)) / (length + 1e-3)


class BasicOrientationHead(nn.Module):
    """Global average pool of the coarsest encoder map, linear, activation, linear to 2.

    Args:
        channels: of the encoder's maps, fine to coarse.
        dropout_rate: after the pooling. activation: between the linear layers.
    """

    predicts_scale = False
    reads_decoder = False

    def __init__(
        self, channels: Sequence[int], dropout_rate: float = 0.2, activation: str = "silu"
    ) -> None:
        super().__init__()
        width = channels[-1]
        self.orientation = nn.Sequential(
            nn.Dropout(dropout_rate),
            nn.Linear(width, width),
            activation_layer(activation),
            nn.Linear(width, 2),
        )

    def forward(self, maps: list[Tensor]) -> Orientation:
        """The direction."""
        return Orientation(self.orientation(maps[-1].mean(dim=(2, 3))))


class DenseOrientationHead(nn.Module):
    """Every location of an encoder map votes for a direction; the votes are averaged.

    Votes are vectors of any length, so a place that sees no facade can abstain. Averaging after the
    non-linear layers, and not before, lets a short training find the angle.

    Args:
        channels: of the encoder's maps, fine to coarse.
        embedding_size: channels of the hidden layers; None = as many as the map has.
        num_layers: hidden 3x3 convolutions (BN, activation) before the vote; 0 = straight 1x1.
        layer: which encoder map votes (-1 = the coarsest).
        dropout_rate: of whole channels, before the vote.
        activation: of the hidden layers.
    """

    predicts_scale = False
    reads_decoder = False

    def __init__(
        self,
        channels: Sequence[int],
        embedding_size: int | None = None,
        num_layers: int = 1,
        layer: int = -1,
        dropout_rate: float = 0.2,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        if not -len(channels) <= layer < len(channels):
            raise ValueError(f"layer {layer} of an encoder with {len(channels)} maps")
        self.layer = layer
        width = channels[layer]
        inner = embedding_size or width
        stages: list[nn.Module] = []
        for _ in range(num_layers):
            stages += [conv3x3(width, inner, bias=False), nn.BatchNorm2d(inner)]
            stages.append(activation_layer(activation))
            width = inner
        self.features = nn.Sequential(*stages, nn.Dropout2d(dropout_rate))
        self.direction = nn.Conv2d(width, 2, kernel_size=1)
        if self.predicts_scale:
            self.scale = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, maps: list[Tensor]) -> Orientation:
        """The direction, and the scale if this head predicts it."""
        x = self.features(maps[self.layer])
        direction = self.direction(x).mean(dim=(2, 3))
        if not self.predicts_scale:
            return Orientation(direction)
        # Its 1x1 convolution, written so that it is computed in float32 under autocast as well; the
        # mean over the map may come first, because it is linear.
        pooled = x.float().mean(dim=(2, 3))[:, None]
        scale = (pooled * self.scale.weight.flatten(1)).sum(dim=2) + self.scale.bias
        return Orientation(direction, F.softplus(scale))


class BasicOrientationScaleHead(DenseOrientationHead):
    """DenseOrientationHead whose locations also vote for the scale, in place of least squares."""

    predicts_scale = True


class FlowOrientationHead(nn.Module):
    """Every pixel of the finest decoder map predicts its flow vector; their mean is the direction.

    The mean (`mean_direction`) is that of the image's own pixels, not of the padding around it. The
    map itself can be supervised (OUTPUT_FLOW_MASK), which teaches the angle far sooner than one
    vector an image does.

    Args:
        channels: of the decoder's maps, fine to coarse.
        embedding_size: channels of the hidden 3x3 convolution.
        dropout_rate: of whole channels, before it.
        activation: after it.
        output_gain: factor on the flow, which is tens of pixels where networks start near 1.
    """

    predicts_scale = False
    reads_decoder = True

    def __init__(
        self,
        channels: Sequence[int],
        embedding_size: int = 32,
        dropout_rate: float = 0.0,
        activation: str = "relu",
        output_gain: float = 10.0,
    ) -> None:
        super().__init__()
        self.output_gain = output_gain
        self.dropout = nn.Dropout2d(dropout_rate)
        self.flow = nn.Sequential(
            conv3x3(channels[0], embedding_size, bias=False),
            nn.BatchNorm2d(embedding_size),
            activation_layer(activation),
            conv3x3(embedding_size, 2),
        )

    def forward(self, maps: list[Tensor]) -> Orientation:
        """The flow map, whose mean is the direction."""
        return Orientation(None, flow=self.flow(self.dropout(maps[0])).float() * self.output_gain)


_HERE = "geopose.models.heads."
AGL_HEADS: dict[str, Callable[..., nn.Module]] = {
    _HERE + c.__name__: c for c in (SimpleAGLHead, AGLHead, OnlyAGLHead, HyperColumnAGLHead)
}
ORIENTATION_HEADS: dict[str, Callable[..., nn.Module]] = {
    _HERE + c.__name__: c
    for c in (
        BasicOrientationHead,
        DenseOrientationHead,
        BasicOrientationScaleHead,
        FlowOrientationHead,
    )
}
