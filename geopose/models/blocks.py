"""Small layers of the decoder and the heads: feature maps in, feature maps out.

Parameter names are those of the published checkpoints (after `geopose.models.legacy`), so they are
part of the file format. BatchNorm epsilon is torch's 1e-5 throughout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_toolbelt.modules.dsconv import DepthwiseSeparableConv2d
from pytorch_toolbelt.modules.unet import UnetBlock as ToolbeltUnetBlock
from pytorch_toolbelt.modules.upsample import AbstractResizeLayer, UpsampleLayerType
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch.nn import functional as F

# By pytorch-toolbelt's names, which published configs use; made of torch's own modules, which
# compute the same and can be exported.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "hard_swish": partial(nn.Hardswish, inplace=True),
    "hard_sigmoid": partial(nn.Hardsigmoid, inplace=True),
    "mish": partial(nn.Mish, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "celu": partial(nn.CELU, inplace=True),
    "selu": partial(nn.SELU, inplace=True),
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "none": nn.Identity,
}
ACTIVATION_SYNONYMS = {
    "swish": "silu",
    "swish_naive": "silu",
    "mish_naive": "mish",
}


def activation_layer(name: str) -> nn.Module:
    """A new activation by name or synonym; ValueError lists the known ones."""
    key = ACTIVATION_SYNONYMS.get(name, name) if isinstance(name, str) else name
    if key not in ACTIVATIONS:
        known = ", ".join(sorted({*ACTIVATIONS, *ACTIVATION_SYNONYMS}))
        raise ValueError(f"unknown activation {name!r} (known: {known})")
    return ACTIVATIONS[key]()


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """3 x 3 convolution that keeps the map's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


_OUTER = (0, -1)  # the first and the last row or column
_CORNERS = tuple((a, b) for a in _OUTER for b in _OUTER)


def _add_plane(
    y: Tensor, everywhere: Tensor, rows: Tensor, columns: Tensor, corners: Tensor
) -> Tensor:
    """Adds what a constant plane gives to N x C x H x W maps, in place.

    Args:
        y: the maps.
        everywhere: N x C, to every pixel.
        rows, columns: 2 x N x C, which the first and the last lose. corners: 4 x N x C, which lost
            their weight twice.
    """
    y += everywhere[:, :, None, None]
    for number, outer in enumerate(_OUTER):
        y[:, :, outer] -= rows[number][:, :, None]
        y[:, :, :, outer] -= columns[number][:, :, None]
    for number, (row, column) in enumerate(_CORNERS):
        y[:, :, row, column] += corners[number]
    return y


class _AddPlane(torch.autograd.Function):
    """`_add_plane` whose gradient is that of the maps as it is.

    torch's own gradient of a change to a part of a map copies the whole map, here eight times.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, *parts: Tensor) -> Tensor:  # type: ignore[override]
        """Changes the maps in place."""
        ctx.mark_dirty(y)
        return _add_plane(y, *parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Of the maps, and of what was added where."""
        rows = torch.stack([-grad[:, :, outer].sum(2) for outer in _OUTER])
        columns = torch.stack([-grad[:, :, :, outer].sum(2) for outer in _OUTER])
        corners = torch.stack([grad[:, :, row, column] for row, column in _CORNERS])
        return grad, grad.sum((2, 3)), rows, columns, corners


class GsdConv(nn.Conv2d):
    """3 x 3 convolution of N x C maps and one more plane that is constant, the ground sampling.

    The weights are those of a convolution of C + 1 channels, the last of which is the plane; the
    plane itself is not made. It adds gsd times the sum of its 9 weights everywhere, less the
    weights that reach beyond the edge (zero padding) in the outermost rows and columns. Only in a
    graph for other engines it is a plane: they would write whole maps anew for each edge.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels + 1, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, gsd_m: Tensor) -> Tensor:  # type: ignore[override]
        """N x C x H x W maps and N x 1 metres per pixel -> N x out x H x W."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            plane = gsd_m[:, :, None, None] * torch.ones_like(x[:, :1])
            return super().forward(torch.cat([x, plane], dim=1))
        taps = self.weight[:, -1]  # out x 3 x 3
        y = F.conv2d(x, self.weight[:, :-1], self.bias, padding=1)
        gsd = gsd_m.to(y.dtype)
        taps = taps.to(y.dtype)
        rows = torch.stack([gsd * taps[:, outer].sum(1) for outer in _OUTER])
        columns = torch.stack([gsd * taps[:, :, outer].sum(1) for outer in _OUTER])
        corners = torch.stack([gsd * taps[:, a, b] for a in _OUTER for b in _OUTER])
        parts = gsd * taps.sum((1, 2)), rows, columns, corners
        if torch.is_grad_enabled():
            return _AddPlane.apply(y, *parts)  # type: ignore[no-untyped-call]
        return _add_plane(y, *parts)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear with aligned corners, the only resize that the networks use."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


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
        # The mean as a 1x1 convolution: several times faster than a reduction over channels.
        groups = torch.eye(self.out_channels, dtype=x.dtype, device=x.device) / 4
        groups = groups.repeat_interleave(4, dim=1)[:, :, None, None]
        return up + resize(F.conv2d(x, groups), up.shape[-2:])


class UnetBlock(ToolbeltUnetBlock):
    """(3x3 convolution, BN, activation) twice: toolbelt's block with torch's own activations."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        super().__init__(in_channels, out_channels)
        self.act1, self.act2 = activation_layer(activation), activation_layer(activation)


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


class InvertedUnetBlock(nn.Sequential):
    """Two of timm's inverted residual blocks: few parameters and operations for their width.

    Each widens by a 1x1 convolution, filters by a depthwise 3x3, narrows by a 1x1 (each with BN,
    the first two with activation), and adds its input where the channels agree.
    """

    EXPANSION = 2.0

    def __init__(self, in_channels: int, out_channels: int, activation: str = "silu") -> None:
        act_layer = type(activation_layer(activation))
        super().__init__(
            *(
                InvertedResidual(
                    channels, out_channels, exp_ratio=self.EXPANSION, act_layer=act_layer
                )
                for channels in (in_channels, out_channels)
            )
        )


# What `model.decoder.block_type` and `model.decoder.upsample` may say. A block takes
# (in_channels, out_channels, activation), an upsampling (in_channels, scale_factor).
BLOCK_TYPES: dict[str, type[nn.Module]] = {
    "unet": UnetBlock,
    "residual_unet": ResidualUnetBlock,
    "ir_unet": InvertedUnetBlock,
    "dense_unet": DenseUnetBlock,
}
UPSAMPLES: dict[str, type[nn.Module] | UpsampleLayerType] = {
    "bilinear": UpsampleLayerType.BILINEAR,  # with aligned corners
    "nearest": UpsampleLayerType.NEAREST,
    "rdtsc": ResidualDeconvolution,
    "residual_deconv": ResidualDeconvolution,  # toolbelt's name for it
}
