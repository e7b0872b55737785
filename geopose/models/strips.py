"""The largest maps of a network a few rows at a time: for inference, in a fraction of the memory.

The fine end of a decoder and the height heads hold maps of gigabytes for a large image, each made
from one that is four times smaller and needed only by the next few convolutions. Here a strip of
rows goes through all of them before the next strip is begun. Strips overlap by as many rows as the
convolutions reach, so the result is the same.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose.models.blocks import ResidualDeconvolution, resize
from geopose.models.fused import FusedConv, FusedGsdConv, LastConv, on_cpu

# Pixels of a strip, all images of a batch together; 128 channels of float32 make 128 MB of 2^18.
_PIXELS_ON_CPU = 2**18
_PIXELS_ELSEWHERE = 2**21  # GPUs have larger batches, and compilers look at each strip anew
_LEAST_STRIP = 32  # rows; in thinner strips the overlap would cost more than it is worth


def by_strips(
    compute: Callable[[int, int], Tensor], x: Tensor, size: Sequence[int], reach: int
) -> Tensor:
    """Puts a map together from strips.

    Args:
        compute: gives the rows from a start to before an end, N x C x rows x W; the outermost
            `reach` of them may be wrong where the map goes on.
        x: what the map is made from, N x ...; size: height and width of the map. reach: rows.

    Returns:
        N x C x H x W.
    """
    count = len(x)
    height, width = size
    eager_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    pixels = _PIXELS_ON_CPU if eager_cpu else _PIXELS_ELSEWHERE
    rows = max(_LEAST_STRIP, pixels // (count * width))
    rows += rows % 2
    if rows >= height:
        return compute(0, height)
    whole: Tensor | None = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        start, end = max(0, top - reach), min(height, bottom + reach)
        strip = compute(start, end)[:, :, top - start : bottom - start]
        if whole is None:
            whole = torch.empty(
                (count, strip.shape[1], height, width),
                dtype=strip.dtype,
                device=strip.device,
                memory_format=(
                    torch.channels_last if strip.stride(1) == 1 else torch.contiguous_format
                ),
            )
        whole[:, :, top:bottom] = strip
    assert whole is not None
    return whole


class BilinearRows(nn.Module):
    """Rows of a map enlarged by `resize`."""

    def rows(self, x: Tensor, size: Sequence[int], start: int, end: int) -> Tensor:
        """Rows `start` to before `end` of the N x C x H x W map at this size."""
        return _resized_rows(x, size, start, end, nn.Identity())


def _resized_rows(
    x: Tensor, size: Sequence[int], start: int, end: int, before: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rows of `resize(before(x), size)`; `before` sees pixels one by one."""
    height = x.shape[2]
    if (start, end) == (0, size[0]):
        return resize(before(x), torch.Size(size))
    step = (height - 1) / (size[0] - 1)
    # In float32, as torch does it; the part is a row larger each way, lest rounding leave it.
    places = torch.arange(start, end, dtype=torch.float32, device=x.device) * step
    first = max(0, int(start * step) - 1)
    last = min(height, int((end - 1) * step) + 3)
    part = before(x[:, :, first:last])
    part = resize(part, torch.Size((last - first, size[1])))
    lower = places.long()
    upper = (lower + 1).clamp(max=height - 1)
    share = places - lower
    # As N x H x W x C, for rows that are picked as N x C x H x W would lose the layout of the maps.
    pixels = part.permute(0, 2, 3, 1)
    if on_cpu(part):
        return _mixed_rows(pixels, lower - first, upper - first, share).permute(0, 3, 1, 2)
    above, below = (pixels.index_select(1, at - first) for at in (lower, upper))
    return torch.lerp(above, below, share.to(part)[:, None, None]).permute(0, 3, 1, 2)


def _mixed_rows(x: Tensor, above: Tensor, below: Tensor, share: Tensor) -> Tensor:
    """Rows of N x H x W x C mixed by twos, in one pass over the maps: a matrix product.

    Args:
        above, below: which rows; share: how much of the lower one.
    """
    mix = torch.zeros(len(share), x.shape[1])
    mix.scatter_add_(1, above[:, None], 1 - share[:, None])
    mix.scatter_add_(1, below[:, None], share[:, None])
    return (mix.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])


class DeconvolutionRows(nn.Module):
    """Rows of a `ResidualDeconvolution`, with the 1 x 1 convolution before it (or None) in it.

    Both are linear, so they are one transposed convolution. The bias of the first one, spread by
    the second, depends on the pixel's place: it differs between even rows, odd rows and the last
    row, whose lower neighbours are missing, and likewise between columns.
    """

    def __init__(self, up: ResidualDeconvolution, before: FusedConv | None = None) -> None:
        super().__init__()
        weight = up.conv.weight.detach().double()  # in x out x 3 x 3
        means = torch.eye(up.out_channels, dtype=torch.float64).repeat_interleave(4, dim=1) / 4
        bias = torch.zeros(len(weight), dtype=torch.float64)
        if before is not None:
            mix = before.weight.detach().double().flatten(1)
            bias = before.bias.detach().double()
            spread = torch.einsum("m,mokl->okl", bias, weight)
            weight = torch.einsum("mi,mokl->iokl", mix, weight)
        else:
            mix = torch.eye(len(weight), dtype=torch.float64)
            spread = torch.zeros_like(weight[0])
        # Rows of the kernel that meet an even, an odd and the last row of the result.
        met = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=torch.float64)
        offsets = torch.einsum("okl,rk,cl->rco", spread, met, met)
        offsets = offsets + up.conv.bias.detach().double()  # type: ignore[union-attr]
        self.weight = _fixed(weight)
        self.offsets = _fixed(offsets)
        self.means = _fixed((means @ mix)[:, :, None, None])
        self.mean_bias = _fixed(means @ bias)

    def rows(self, x: Tensor, size: Sequence[int], start: int, end: int) -> Tensor:
        """Rows `start` to before `end` of the map at twice the size of N x C x H x W."""
        height, width = x.shape[-2:]
        first, last = start // 2, -(-end // 2)
        part = x[:, :, first : min(last + 1, height)]
        up = F.conv_transpose2d(part, self.weight, None, stride=2, padding=1, output_padding=1)
        up = up[:, :, : 2 * (last - first)]
        lines = self._lines(width)
        pairs = up.unflatten(2, (-1, 2))
        pairs += lines[:, None, :2]
        if last == height:
            up[:, :, -1] += lines[:, 2] - lines[:, 1]
        up = up[:, :, start - 2 * first : end - 2 * first]
        up += _resized_rows(x, size, start, end, self._mean)
        return up

    def _mean(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.means, self.mean_bias)

    def _lines(self, width: int) -> Tensor:
        """Offsets of an even, an odd and the last row, out x 3 x 2 width."""
        even, odd, last = self.offsets.unbind(1)
        lines = torch.stack([even, odd], dim=1).repeat(1, width, 1)
        lines[:, -1] = last
        return lines.permute(2, 0, 1)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float().contiguous(), requires_grad=False)


class StripStage(nn.Module):
    """One stage of a U-Net decoder: enlarge, append the encoder's map, block."""

    def __init__(self, up: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.up, self.block = up, block
        convs = [module for module in block.modules() if isinstance(module, FusedConv)]
        # What they reach one after another; even, so that strips begin with even rows.
        reach = sum(conv.weight.shape[2] // 2 * conv.dilation[0] for conv in convs)
        self.reach = reach + reach % 2

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """N x C x h x w and the encoder's N x S x H x W -> N x out x H x W."""
        size = skip.shape[-2:]

        def compute(start: int, end: int) -> Tensor:
            enlarged = self.up.rows(x, size, start, end)  # type: ignore[operator]
            return self.block(torch.cat([enlarged, skip[:, :, start:end]], dim=1))

        return by_strips(compute, x, size, self.reach)


class StripDecoder(nn.Module):
    """A U-Net decoder; encoder maps and decoder maps are listed fine to coarse."""

    def __init__(self, stages: list[StripStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """As toolbelt's `UNetDecoder`."""
        x = maps[-1]
        decoded: list[Tensor] = []
        for stage, skip in zip(self.stages, maps[-2::-1], strict=True):
            x = stage(x, skip)
            decoded.insert(0, x)
        return decoded


class HeightBranch(nn.Module):
    """The last two convolutions of a height head, one of which may see the gsd."""

    def __init__(self, conv: nn.Module, last: LastConv) -> None:
        super().__init__()
        self.conv, self.last = conv, last
        self.uses_gsd = isinstance(conv, FusedGsdConv)

    def forward(self, x: Tensor, gsd_m: Tensor) -> Tensor:
        """N x C x H x W -> N x 1 x H x W, float32, not negative."""
        x = self.conv(x, gsd_m) if self.uses_gsd else self.conv(x)
        return F.relu(self.last(x))


class StripTrunk(nn.Module):
    """Enlarging and a convolution (or neither), and the branches that share them."""

    _REACH = 4  # rows: three 3 x 3 convolutions reach 3; even, so that strips begin with even rows

    def __init__(
        self,
        up: DeconvolutionRows | None,
        shared: nn.Module,
        branches: list[HeightBranch],
    ) -> None:
        super().__init__()
        self.up, self.shared = up, shared
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor, gsd_m: Tensor) -> Tensor:
        """N x C x H x W -> N x branches x 2H x 2W (H x W if nothing is enlarged), float32."""
        height, width = x.shape[-2:]
        size = (height, width) if self.up is None else (2 * height, 2 * width)

        def compute(start: int, end: int) -> Tensor:
            if self.up is None:
                part = x[:, :, start:end]
            else:
                part = self.up.rows(x, size, start, end)
            part = self.shared(part)
            return torch.cat([branch(part, gsd_m) for branch in self.branches], dim=1)

        return by_strips(compute, x, size, self._REACH)


class StripHead(nn.Module):
    """A height head made of trunks, which together have one or two branches."""

    def __init__(
        self, before: nn.Module, trunks: list[StripTrunk], stride: int, output_gain: float
    ) -> None:
        super().__init__()
        self.before = before
        self.trunks = nn.ModuleList(trunks)
        self.stride = stride
        self.output_gain = output_gain

    def forward(self, maps: Sequence[Tensor], gsd_m: Tensor) -> tuple[Tensor, Tensor | None]:
        """(height, magnitude or None), N x 1 x H x W, float32."""
        x = self.before(maps[0])
        planes = [plane for trunk in self.trunks for plane in trunk(x, gsd_m).split(1, dim=1)]
        planes = [plane * self.output_gain if self.output_gain != 1 else plane for plane in planes]
        return planes[0], planes[1] if len(planes) > 1 else None
