"""3 x 3 convolutions of wide maps on a CPU with half of the multiplications, in float32.

Winograd's F(4, 3) along the rows of the image (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", https://arxiv.org/abs/1509.09308): four neighbouring results of a filter of three
taps cost 6 multiplications instead of 12. The other axis stays a plain convolution of 3 x 1, done
by oneDNN, so rounding errors grow by a small factor only. Blocks of the map small enough for the
cache are transformed, multiplied and transformed back one after another.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 4  # results of a tile; it reads two more inputs
_TAPS = TILE + 2
_BLOCK_ROWS = 16  # measured best with 128 tiles on 2 cores: blocks of about 8 MB
_BLOCK_TILES = 128
_LEAST_CHANNELS = 96  # below, the transforms cost more than they save
_LEAST_TILES = 32
# The points 0, 1, -1, 2, -2 and infinity.
_FILTER_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3 x 3 convolution, padded by 1, of one image is faster this way; x on the CPU."""
    wide = min(weight.shape[:2]) >= _LEAST_CHANNELS
    large = x.shape[-1] >= _LEAST_TILES * TILE and x.shape[-2] >= _BLOCK_ROWS
    return wide and large and x.dtype == torch.float32 and len(x) == 1 and x.shape[-1] % TILE == 0


class Winograd:
    """One 3 x 3 convolution with stride 1 and zero padding 1, and what it prepares once.

    Args:
        weight: out x in x 3 x 3.
    """

    def __init__(self, weight: Tensor) -> None:
        transform = torch.tensor(_FILTER_TRANSFORM, dtype=torch.float64)
        filters = torch.einsum("jk,ocrk->jocr", transform, weight.double()).float()
        self._filters = filters[..., None].contiguous()
        self._packed: dict[tuple[int, ...], list[Tensor]] = {}

    def __call__(self, x: Tensor, bias: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """The activated convolution.

        Args:
            x: 1 x C x H x W, float32, W a multiple of 4.
            bias: out.
            act: applied to parts of the result; may work in place.

        Returns:
            1 x out x H x W, channels last.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        _, channels, height, width = x.shape
        tiles = width // TILE
        wide = min(tiles, _BLOCK_TILES)
        room = _channels_last(_TAPS, channels, _BLOCK_ROWS + 2, wide)
        result = _channels_last(1, len(bias), _BLOCK_ROWS, wide * TILE)
        out = _channels_last(1, len(bias), height, width)
        for top in range(0, height, _BLOCK_ROWS):
            rows = min(_BLOCK_ROWS, height - top)
            for first in range(0, tiles, wide):
                count = min(wide, tiles - first)
                block = room[:, None, :, : rows + 2, :count]
                _transform_block(x, block, top, first)
                part = result[..., :rows, : TILE * count]
                _transform_back(self._multiply(block, bias), part)
                # In one go: results scattered by fours into fresh memory would be slow to write.
                left = TILE * first
                out[..., top : top + rows, left : left + TILE * count] = act(part)
        return out

    def _multiply(self, block: Tensor, bias: Tensor) -> list[Tensor]:
        """taps x 1 x C x (rows + 2) x tiles -> a product of 1 x out x rows x tiles for each."""
        filters = self._filters_for(block.shape[2:])
        # Tap 1 enters every result with factor 1, so the bias may ride on it.
        biases = [bias if tap == 1 else None for tap in range(_TAPS)]
        return [
            torch.ops.mkldnn._convolution_pointwise(
                *parts, [0, 0], [1, 1], [1, 1], 1, "none", [], ""
            )
            for parts in zip(block, filters, biases, strict=True)
        ]

    def _filters_for(self, shape: torch.Size) -> list[Tensor]:
        """The filters as oneDNN wants them for blocks of this shape."""
        if shape not in self._packed:
            self._packed[shape] = [
                torch.ops.mkldnn._reorder_convolution_weight(
                    filters, [0, 0], [1, 1], [1, 1], 1, [1, *shape]
                )
                for filters in self._filters
            ]
        return self._packed[shape]


def _channels_last(*shape: int) -> Tensor:
    """Uninitialised float32 of a shape N x C x H x W, channels last in memory."""
    return torch.empty(shape, memory_format=torch.channels_last)


def _transform_block(x: Tensor, block: Tensor, top: int, first: int) -> None:
    """Fills taps x 1 x C x (rows + 2) x tiles from the image; outside the image are zeros."""
    rows, count = block.shape[-2] - 2, block.shape[-1]
    above, below = int(top == 0), int(top + rows == x.shape[2])
    for missing, row in ((above, 0), (below, -1)):
        if missing:
            block[:, :, :, row] = 0
    inside = x[:, :, top - 1 + above : top + rows + 1 - below]
    v0, v1, v2, v3, v4, v5 = block[:, :, :, above : rows + 2 - below].unbind(0)
    left = TILE * first  # d[j] of tile t is the pixel left - 1 + j + 4 t
    reach = TILE * count

    def every(j: int, skip_first: int = 0, skip_last: int = 0) -> Tensor:
        start = left - 1 + j
        return inside[..., start + TILE * skip_first : start + reach - TILE * skip_last : TILE]

    d1, d2, d3, d4 = (every(j) for j in (1, 2, 3, 4))
    torch.sub(d4, d2, alpha=4, out=v0)
    torch.sub(d3, d1, alpha=4, out=v5)
    torch.add(v0, v5, out=v1)
    torch.sub(v0, v5, out=v2)
    torch.sub(d4, d2, out=v0)
    torch.sub(d3, d1, out=v5)
    torch.add(v0, v5, alpha=2, out=v3)
    torch.sub(v0, v5, alpha=2, out=v4)
    # The first tile of the image has no d0 and the last one no d5.
    at_left, at_right = int(first == 0), int(left + reach == x.shape[3])
    torch.sub(d4, d2, alpha=5, out=v0)
    v0[..., at_left:].add_(every(0, skip_first=at_left), alpha=4)
    torch.mul(d1, 4, out=v5).sub_(d3, alpha=5)
    v5[..., : count - at_right].add_(every(5, skip_last=at_right))


def _transform_back(products: list[Tensor], out: Tensor) -> None:
    """Writes 1 x out x rows x 4 tiles from the six products, which it uses up."""
    m0, m1, m2, m3, m4, m5 = products
    y0, y1, y2, y3 = (out[..., k::TILE] for k in range(TILE))
    sum_a = m1 + m2
    difference_a = m1.sub_(m2)
    sum_b = torch.add(m3, m4, out=m2)
    difference_b = m3.sub_(m4)
    torch.add(m0.add_(sum_a), sum_b, out=y0)
    torch.add(difference_a, difference_b, alpha=2, out=y1)
    torch.add(sum_a, sum_b, alpha=4, out=y2)
    torch.add(m5.add_(difference_a), difference_b, alpha=8, out=y3)
