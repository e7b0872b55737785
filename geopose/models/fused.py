"""Layers of a network that only predicts: several of the trained ones in one, for inference.

A BatchNorm with fixed statistics is a factor and an offset, so it becomes part of the convolution
before it. On a CPU the activation after it and the addition of a shortcut are done by the same
oneDNN kernel while the result is still in the cache. Elsewhere, and for compilers, the same layers
are plain operations.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.nn import functional as F

from geopose.models import winograd
from geopose.models.blocks import GsdConv
from geopose.system.devices import has_native_bf16

SAME_CONV = "Conv2dSame"  # timm's, which pads by the size of the maps
# What oneDNN can append to a convolution, by the activation's class.
_CPU_NAMES: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.SiLU: "swish",
    nn.Hardswish: "hardswish",
}
# Values that are converted to float32 at a time.
_VALUES_IN_CACHE = 2**20
_ROWS_ON_GPU = 2**26


@cache
def _cpu_has_bf16() -> bool:
    return has_native_bf16(torch.device("cpu"))


def on_cpu(x: Tensor) -> bool:
    """Whether oneDNN's fused kernels can be called on this tensor, here and now."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and (x.dtype == torch.float32 or _cpu_has_bf16())
        and torch.backends.mkldnn.is_available()
    )


class FusedConv(nn.Module):
    """Convolution, BatchNorm (folded) and activation.

    Args:
        conv: any 2D convolution that pads with zeros.
        norm: BatchNorm in eval mode, or None.
        act: what follows, or None.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module | None = None, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        weight, bias = folded(conv, norm)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.act = act or nn.Identity()
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        same = type(conv).__name__ == SAME_CONV
        self.padding = (0, 0) if same else _numbers(conv)
        self.pads_same = same
        self._cpu_name = _CPU_NAMES.get(type(self.act))
        self._fast: winograd.Winograd | None = None  # made at the first image for which it pays
        self._plain_3x3 = tuple(weight.shape[2:]) == (3, 3) and (
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
        ) == ((1, 1), (1, 1), (1, 1), 1)

    def forward(self, x: Tensor, gate: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        """N x C x H x W -> N x out x h x w.

        Args:
            x: the maps.
            gate: N x C x 1 x 1, factors of the input's channels. For a single large image they go
                into the weights, which spares a pass over the maps.
            add: N x out x h x w, added to the activated result; may be overwritten by it.
        """
        weight: Tensor = self.weight
        if gate is not None:
            fewer = len(weight) < x.shape[2] * x.shape[3]  # weights than pixels, for each channel
            if len(x) == 1 and self.groups == 1 and fewer:
                weight = weight * gate.reshape(1, -1, 1, 1)
            else:
                x = x * gate
        padding = self.padding
        if self.pads_same:
            x, weight, padding = self._pad_same(x, weight)
        return self.convolve(x, weight, self.bias, add, padding)

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        add: Tensor | None = None,
        padding: tuple[int, int] | None = None,
    ) -> Tensor:
        padding = padding or self.padding
        geometry = (padding, self.stride, self.dilation, self.groups)
        if not on_cpu(x) or self._cpu_name is None:
            y = self.act(F.conv2d(x, weight, bias, self.stride, padding, *geometry[2:]))
            return y if add is None else add + y
        if add is None and self._plain_3x3 and weight is self.weight and winograd.pays(x, weight):
            self._fast = self._fast or winograd.Winograd(weight)
            return self._fast(x, bias, self._act_into)
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, *geometry, self._cpu_name, [], ""
            )
        if self._cpu_name == "none":
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                add, x, weight, bias, *geometry, "add", 1.0, None, [], None
            )
        return add.add_(self.convolve(x, weight, bias, None, padding))

    def _act_into(self, y: Tensor, out: Tensor) -> None:
        if isinstance(self.act, nn.SiLU):
            torch.ops.aten.silu.out(y, out=out)
        elif isinstance(self.act, nn.ReLU):
            torch.clamp(y, min=0, out=out)
        else:
            out.copy_(self.act(y))

    def _pad_same(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Zero padding as TensorFlow's "same": what is missing, the larger half right and below.

        Where that is one more than left or above, a kernel with zeros before its first column or
        row asks for the same on both sides, which spares depthwise filters a copy of the maps.
        """
        sides: list[tuple[int, int]] = []
        padding: list[int] = []
        zeros: list[tuple[int, int]] = []
        for axis in (0, 1):
            size, stride = x.shape[2 + axis], self.stride[axis]
            reach = (weight.shape[2 + axis] - 1) * self.dilation[axis] + 1
            missing = max((-(-size // stride) - 1) * stride + reach - size, 0)
            sides.insert(0, (missing // 2, missing - missing // 2))
            zeros.insert(0, (missing % 2, 0))
            padding.append(-(-missing // 2))
        if any(map(sum, zeros)):
            if self.groups == 1 or self.dilation != (1, 1) or not on_cpu(x):
                return F.pad(x, [*sides[0], *sides[1]]), weight, (0, 0)
            weight = F.pad(weight, [*zeros[0], *zeros[1]])
        return x, weight, (padding[0], padding[1])


class FusedGsdConv(nn.Module):
    """A `GsdConv` and its activation; for a single image the gsd's share is part of the bias."""

    def __init__(self, conv: GsdConv, act: nn.Module) -> None:
        super().__init__()
        self.plain, self.act = conv, act
        self.fused = FusedConv(conv, None, act)
        weight = self.fused.weight[:, :-1].contiguous()
        self.fused.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor, gsd_m: Tensor) -> Tensor:
        """N x C x H x W maps and N x 1 metres per pixel -> N x out x H x W."""
        if len(x) > 1 or not on_cpu(x) or min(x.shape[-2:]) < 2:
            return self.act(self.plain(x, gsd_m))
        share = gsd_m[0].to(x.dtype) * self.plain.weight[:, -1].sum((1, 2))
        y = self.fused.convolve(x, self.fused.weight, self.fused.bias + share)
        for axis in (2, 3):  # the outermost rows and columns anew: there the plane ends
            for start, row in ((0, 0), (x.shape[axis] - 2, 1)):
                edge = self.act(self.plain(x.narrow(axis, start, 2), gsd_m))
                y.narrow(axis, start + row, 1).copy_(edge.narrow(axis, row, 1))
        return y


class LastConv(nn.Module):
    """A 3 x 3 convolution to one plane, with float32 results from maps of any precision.

    Heights need more digits than 16-bit numbers have. As a 1 x 1 convolution to nine planes, which
    are then shifted and summed, it is several times faster on a CPU than with a single output.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight, bias = folded(conv, None)
        self.kernel_size = weight.shape[-1]
        taps = weight[0].permute(1, 2, 0).reshape(-1, weight.shape[1], 1, 1)
        self.taps = nn.Parameter(taps.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x 1 x H x W, float32."""
        planes = self._planes(x)
        reach = self.kernel_size // 2
        height, width = x.shape[-2:]
        y = self.bias.reshape(1, -1, 1, 1).float().expand(len(x), 1, height, width).clone()
        for number in range(planes.shape[1]):
            down, right = divmod(number, self.kernel_size)
            _add_shifted(y[:, 0], planes[:, number], down - reach, right - reach)
        return y

    def _planes(self, x: Tensor) -> Tensor:
        """Each tap's answer at every pixel, N x taps x H x W, contiguous."""
        taps = self.taps.float()
        if on_cpu(x):
            return torch.stack([_products(taps.flatten(1), image) for image in x])
        rows = max(1, _ROWS_ON_GPU // (x.shape[0] * x.shape[1] * x.shape[3]))
        if x.dtype == torch.float32:
            rows = x.shape[2]
        strips = [F.conv2d(strip.float(), taps).contiguous() for strip in x.split(rows, dim=2)]
        return torch.cat(strips, dim=2) if len(strips) > 1 else strips[0]


def _products(weight: Tensor, image: Tensor) -> Tensor:
    """out x C times C x H x W in float32, converted as many pixels at a time as the cache holds."""
    channels, height, width = image.shape
    pixels = image.permute(1, 2, 0).reshape(-1, channels)
    results = weight.new_empty(len(weight), len(pixels))
    count = max(1, _VALUES_IN_CACHE // channels)
    for part, target in zip(pixels.split(count), results.split(count, dim=1), strict=True):
        torch.mm(weight, part.float().T, out=target)
    return results.view(-1, height, width)


def mean_of_pixels(x: Tensor) -> Tensor:
    """N x C x H x W -> N x C x 1 x 1; on a CPU as a matrix product: means of 16 bits are slow."""
    if not on_cpu(x):
        return x.mean((2, 3), keepdim=True)
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    count = pixels.shape[1]
    return (x.new_ones(1, count) @ pixels).div_(count).permute(0, 2, 1)[..., None]


def _add_shifted(total: Tensor, plane: Tensor, down: int, right: int) -> None:
    """total[y, x] += plane[y + down, x + right] where that exists."""
    height, width = total.shape[-2:]
    rows, columns = height - abs(down), width - abs(right)
    if rows <= 0 or columns <= 0:
        return
    target = total[:, max(0, -down) :, max(0, -right) :][:, :rows, :columns]
    target += plane[:, max(0, down) :, max(0, right) :][:, :rows, :columns]


class SqueezeGate(nn.Module):
    """timm's squeeze-excite without its last step: the factors, not the multiplied maps."""

    def __init__(self, excite: SqueezeExcite) -> None:
        super().__init__()
        self.reduce = nn.Sequential(excite.conv_reduce, excite.act1)
        self.expand = excite.conv_expand
        self.gate = excite.gate

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x C x 1 x 1."""
        return self.gate(self.expand(self.reduce(mean_of_pixels(x))))


class FusedMobileBlock(nn.Module):
    """timm's InvertedResidual or DepthwiseSeparableConv: [widen], filter, gate, project, add."""

    def __init__(self, before: list[nn.Module], excite: nn.Module, last: FusedConv, skip: bool):
        super().__init__()
        self.before = nn.Sequential(*before)
        self.gate = SqueezeGate(excite) if isinstance(excite, SqueezeExcite) else None
        self.last = last
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x out x h x w."""
        y = self.before(x)
        gate = None if self.gate is None else self.gate(y)
        # The sum overwrites the input, which the encoder hands out nowhere: its maps come from
        # blocks that are followed by one with a stride, and so without a shortcut.
        return self.last(y, gate, add=x if self.skip else None)


class FusedResidualBlock(nn.Module):
    """`ResidualUnetBlock`: three convolutions (the outer ones separable) and a 1 x 1 shortcut."""

    def __init__(self, stages: list[nn.Module], identity: FusedConv) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x out x H x W."""
        return self.identity(x, add=self.stages(x))


class _Float32Maps(Sequence[Tensor]):
    """Maps that become float32 when somebody looks at them."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self._maps = maps

    def __getitem__(self, index: Any) -> Any:
        found = self._maps[index]
        return found.float() if isinstance(found, Tensor) else [x.float() for x in found]

    def __len__(self) -> int:
        return len(self._maps)


class Float32Head(nn.Module):
    """A head that computes in float32 behind a network of 16 bits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head.float()
        self.stride = getattr(head, "stride", None)
        self.reads_decoder = getattr(head, "reads_decoder", False)

    def forward(self, maps: Sequence[Tensor], *inputs: Tensor) -> Any:
        """What the head says of these maps."""
        return self.head(_Float32Maps(maps), *(x.float() for x in inputs))


def _numbers(conv: nn.Conv2d) -> tuple[int, int]:
    """Padding in pixels, also where the layer says it in words."""
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return (0, 0)
        rows, columns = (
            step * (size - 1) // 2
            for step, size in zip(conv.dilation, conv.kernel_size, strict=True)
        )
        return rows, columns
    return conv.padding  # type: ignore[return-value]


def folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what `norm(conv(x))` does, in float32.

    With BatchNorm's `y = (x - mean) / sqrt(var + eps) * gamma + beta`
    (Ioffe and Szegedy, https://arxiv.org/abs/1502.03167), computed in float64.
    """
    weight = conv.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is not None:
        gamma, beta = (norm.weight, norm.bias)
        factor = torch.rsqrt(norm.running_var.double() + norm.eps)  # type: ignore[union-attr, operator]
        factor = factor if gamma is None else factor * gamma.detach().double()  # type: ignore[operator]
        bias = (bias - norm.running_mean.double()) * factor  # type: ignore[union-attr, operator]
        bias = bias if beta is None else bias + beta.detach().double()  # type: ignore[operator]
        weight = weight * factor[:, None, None, None]
    return weight.float(), bias.float()
