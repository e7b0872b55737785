"""3 x 3 convolutions of wide maps on a CPU with a third of the multiplications, in float32.

Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
https://arxiv.org/abs/1509.09308), F(4, 3) along the rows of the image and F(2, 3) across them: a
tile of 4 x 2 neighbouring results costs 24 multiplications instead of 72. Larger tiles would save
more, but their rounding errors grow faster. Blocks of the map small enough for the cache are
transformed, multiplied (24 matrix products) and transformed back one after another.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

TILE_WIDTH, TILE_HEIGHT = 4, 2  # results of a tile; it reads two more inputs each way
_COLUMN_TAPS, _ROW_TAPS = TILE_WIDTH + 2, TILE_HEIGHT + 2
_BLOCK_ROWS = 8
_BLOCK_TILES = 128  # of 8 rows: measured best on 2 cores
_LEAST_CHANNELS = 96  # below, the transforms cost more than they save
_LEAST_TILES = 32
# The points 0, 1, -1, 2, -2 and infinity.
_COLUMN_FILTERS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
# The points 0, 1, -1 and infinity.
_ROW_FILTERS = ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1))


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3 x 3 convolution, padded by 1, of one image is faster this way; x on the CPU."""
    height, width = x.shape[-2:]
    wide = min(weight.shape[:2]) >= _LEAST_CHANNELS
    large = width >= _LEAST_TILES * TILE_WIDTH and height >= 2 * _BLOCK_ROWS
    single = len(x) == 1 and x.dtype == torch.float32
    return wide and large and single and width % TILE_WIDTH == 0


class Winograd:
    """One 3 x 3 convolution with stride 1 and zero padding 1, and what it prepares once.

    Args:
        weight: out x in x 3 x 3.
    """

    def __init__(self, weight: Tensor) -> None:
        rows, columns = (
            torch.tensor(points, dtype=torch.float64) for points in (_ROW_FILTERS, _COLUMN_FILTERS)
        )
        filters = torch.einsum("ry,kx,ocyx->rkco", rows, columns, weight.double())
        self._filters = filters.flatten(0, 1).float().contiguous()  # taps x in x out

    def __call__(self, x: Tensor, bias: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """The activated convolution.

        Args:
            x: 1 x C x H x W, float32, W a multiple of 4.
            bias: out.
            act: applied to parts of the result; may work in place.

        Returns:
            1 x out x H x W, channels last.
        """
        image = x.contiguous(memory_format=torch.channels_last)[0].permute(1, 2, 0)
        height, width, channels = image.shape
        tiles = width // TILE_WIDTH
        block = _Block(channels, len(bias), min(tiles, _BLOCK_TILES))
        out = image.new_empty(height, width, len(bias))
        for top in range(0, height, _BLOCK_ROWS):
            rows = min(_BLOCK_ROWS, height - top)
            for first in range(0, tiles, _BLOCK_TILES):
                count = min(_BLOCK_TILES, tiles - first)
                block.read(image, top, -(-rows // TILE_HEIGHT), first, count)
                part = act(block.convolve(self._filters, bias)[:rows])
                # In one go: results scattered by fours into fresh memory would be slow to write.
                left = TILE_WIDTH * first
                out[top : top + rows, left : left + TILE_WIDTH * count] = part
        return out.permute(2, 0, 1)[None]


class _Block:
    """Room for the tiles of a few rows, used again and again, and what is done in it."""

    def __init__(self, channels: int, out_channels: int, tiles: int) -> None:
        rows, pairs = _BLOCK_ROWS, _BLOCK_ROWS // TILE_HEIGHT
        taps = _ROW_TAPS * _COLUMN_TAPS
        self._channels, self._out_channels = channels, out_channels
        self._room = {
            "columns": torch.empty(_COLUMN_TAPS * (rows + 2) * tiles * channels),
            "planes": torch.empty(taps * pairs * tiles * channels),
            "products": torch.empty(taps * pairs * tiles * out_channels),
            "result": torch.empty(rows * tiles * TILE_WIDTH * out_channels),
        }
        self._shape = (0, 0)

    def _view(self, name: str, *shape: int) -> Tensor:
        return self._room[name][: prod(shape)].view(shape)

    def read(self, image: Tensor, top: int, pairs: int, first: int, count: int) -> None:
        """Transforms H x W x C pixels of some pairs of rows; outside the image are zeros."""
        rows = TILE_HEIGHT * pairs + 2
        columns = self._view("columns", _COLUMN_TAPS, rows, count, self._channels)
        start, end = max(0, top - 1), min(image.shape[0], top - 1 + rows)
        above = start - (top - 1)
        below = above + end - start
        columns[:, :above] = 0
        columns[:, below:] = 0
        _transform_columns(image[start:end], columns[:, above:below], first)
        shape = (_ROW_TAPS, _COLUMN_TAPS, pairs, count, self._channels)
        _transform_rows(columns, self._view("planes", *shape))
        self._shape = (pairs, count)

    def convolve(self, filters: Tensor, bias: Tensor) -> Tensor:
        """2 pairs x 4 tiles x out results of what was read; overwritten by the next ones."""
        pairs, count = self._shape
        planes = self._view("planes", len(filters), pairs * count, self._channels)
        products = self._view("products", len(filters), pairs * count, self._out_channels)
        torch.bmm(planes, filters, out=products)
        shape = (_ROW_TAPS, _COLUMN_TAPS, pairs, count, self._out_channels)
        size = (pairs * TILE_HEIGHT, count * TILE_WIDTH, self._out_channels)
        result = self._view("result", *size)
        _transform_back(products.view(shape), bias, result)
        return result


def _transform_columns(inside: Tensor, columns: Tensor, first: int) -> None:
    """Fills 6 x rows x tiles x C from rows x W x C pixels, from tile `first` on."""
    v0, v1, v2, v3, v4, v5 = columns.unbind(0)
    count = columns.shape[2]
    left = TILE_WIDTH * first  # d[j] of tile t is the pixel left - 1 + j + 4 t
    reach = TILE_WIDTH * count

    def every(j: int, skip_first: int = 0, skip_last: int = 0) -> Tensor:
        start = left - 1 + j + TILE_WIDTH * skip_first
        return inside[:, start : left - 1 + j + reach - TILE_WIDTH * skip_last : TILE_WIDTH]

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
    at_left, at_right = int(first == 0), int(left + reach == inside.shape[1])
    torch.sub(d4, d2, alpha=5, out=v0)
    v0[:, at_left:].add_(every(0, skip_first=at_left), alpha=4)
    torch.mul(d1, 4, out=v5).sub_(d3, alpha=5)
    v5[:, : count - at_right].add_(every(5, skip_last=at_right))


def _transform_rows(columns: Tensor, planes: Tensor) -> None:
    """Fills 4 x 6 x pairs x tiles x C from 6 x (2 pairs + 2) x tiles x C."""
    d0, d1, d2, d3 = (columns[:, j : columns.shape[1] - 2 + j : TILE_HEIGHT] for j in range(4))
    v0, v1, v2, v3 = planes.unbind(0)
    torch.sub(d0, d2, out=v0)
    torch.add(d1, d2, out=v1)
    torch.sub(d2, d1, out=v2)
    torch.sub(d1, d3, out=v3)


def _transform_back(products: Tensor, bias: Tensor, result: Tensor) -> None:
    """Fills 2 pairs x 4 tiles x out from 4 x 6 x pairs x tiles x out, which it uses up."""
    products[1, 1] += bias  # this one enters every result with factor 1
    m0, m1, m2, m3 = products.unbind(0)
    m0.add_(m1).add_(m2)  # the upper row of each pair
    m1.sub_(m2).sub_(m3)  # the lower one
    m0, m1, m2, m3, m4, m5 = products[:TILE_HEIGHT].unbind(1)
    pairs, tiles, channels = m0.shape[1:]
    tiled = result.view(pairs, TILE_HEIGHT, tiles, TILE_WIDTH, channels)
    y0, y1, y2, y3 = tiled.transpose(0, 1).unbind(3)
    sum_a = torch.add(m1, m2)
    difference_a = m1.sub_(m2)
    sum_b = torch.add(m3, m4, out=m2)
    difference_b = m3.sub_(m4)
    torch.add(m0.add_(sum_a), sum_b, out=y0)
    torch.add(difference_a, difference_b, alpha=2, out=y1)
    torch.add(sum_a, sum_b, alpha=4, out=y2)
    torch.add(m5.add_(difference_a), difference_b, alpha=8, out=y3)
