"""3 x 3 convolutions of large maps on a CPU with a quarter of the multiplications, in float32.

Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", https://arxiv.org/abs/1509.09308): a tile of 4 x 4 neighbouring results costs 36
multiplications instead of 144. Blocks of the map small enough for the cache are transformed,
multiplied and transformed back one after another, each of which is a matrix product.
"""

from collections.abc import Callable
from functools import cache
from math import sqrt

import torch
from torch import Tensor

TILE = 4  # results of a tile, each way
_TAPS = TILE + 2  # inputs of a tile, each way
# Where the polynomials behind the tile are evaluated, and at infinity. Points about 1 whose
# products are 1 lose a third as much to rounding as the usual 0, 1, -1, 2, -2 (see Barabasz et al.,
# "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks",
# https://arxiv.org/abs/1803.10986).
_POINTS = (0.0, sqrt(1 / 2), -sqrt(1 / 2), sqrt(2), -sqrt(2))
# Tiles of a block, measured best on 2 cores; more rows where channels are few, for each step costs.
_BLOCK_COLUMNS = 64
_LEAST_BLOCK_ROWS = 2
_BLOCK_VALUES = 2**15  # of one tap
_LEAST_CHANNELS = 48  # below, the transforms cost more than they save
_LEAST_TILES = 64


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3 x 3 convolution, padded by 1, of one image is faster this way; x on the CPU."""
    wide = min(weight.shape[:2]) >= _LEAST_CHANNELS
    large = min(x.shape[-2:]) >= TILE and x[0, 0].numel() >= _LEAST_TILES * TILE**2
    single = len(x) == 1 and x.dtype == torch.float32
    return wide and large and single


class Winograd:
    """One 3 x 3 convolution with stride 1 and zero padding 1, and what it prepares once.

    Args:
        weight: out x in x 3 x 3.
    """

    def __init__(self, weight: Tensor) -> None:
        values = _values(3)
        filters = torch.einsum("ry,kx,ocyx->rkco", values, values, weight.double())
        self._filters = filters.flatten(0, 1).float().contiguous()  # taps x in x out

    def __call__(self, x: Tensor, bias: Tensor, act: Callable[[Tensor, Tensor], None]) -> Tensor:
        """The activated convolution.

        Args:
            x: 1 x C x H x W, float32.
            bias: out.
            act: writes the activated first tensor, which it may change, into the second one.

        Returns:
            1 x out x H x W, channels last.
        """
        image = x.contiguous(memory_format=torch.channels_last)[0].permute(1, 2, 0)
        rows, columns = (-(-size // TILE) for size in image.shape[:2])
        out = image.new_empty(rows, TILE, columns, TILE, len(bias))
        channels = max(self._filters.shape[1:])
        block_rows = max(_LEAST_BLOCK_ROWS, _BLOCK_VALUES // (_BLOCK_COLUMNS * channels))
        blocks: dict[tuple[int, int], _Block] = {}
        for top in range(0, rows, block_rows):
            for left in range(0, columns, _BLOCK_COLUMNS):
                size = (min(block_rows, rows - top), min(_BLOCK_COLUMNS, columns - left))
                if size not in blocks:
                    blocks[size] = _Block(size, self._filters, bias)
                results = blocks[size].convolve(image, TILE * top, TILE * left)
                target = out[top : top + size[0], :, left : left + size[1]]
                act(results, target.permute(1, 3, 0, 2, 4))
        # With the batch's axis from the start: the stride of one added later would not look like
        # that of channels-last maps, and the next layer would copy them.
        whole = out.view(1, TILE * rows, TILE * columns, -1)
        return whole[:, : image.shape[0], : image.shape[1]].permute(0, 3, 1, 2)


class _Block:
    """Room for some rows and columns of tiles, used again and again, and what is done in it.

    Args:
        size: rows and columns of tiles.
        filters: transformed, 36 x in x out.
        bias: out.
    """

    def __init__(self, size: tuple[int, int], filters: Tensor, bias: Tensor) -> None:
        (rows, columns), (taps, channels, out_channels) = size, filters.shape
        count = rows * columns
        self._filters = filters
        self._pixels = torch.empty(rows * TILE + 2, columns * TILE + 2, channels)
        self._tiles = torch.empty(_TAPS, _TAPS, rows, columns, channels)
        self._planes = torch.empty(taps, count, channels)
        # A plane of biases behind the products: the transform adds it to each result.
        products = torch.empty(taps + 1, count, out_channels)
        products[taps] = bias
        self._products, self._summands = products[:taps], products.view(taps + 1, -1)
        self._results = torch.empty(TILE, TILE, rows, columns, out_channels)
        self._transform, transform_back = _transforms()
        self._transform_back = torch.cat([transform_back, torch.ones(TILE**2, 1)], dim=1)
        self._flat_tiles = self._tiles.view(taps, -1)
        self._flat_planes = self._planes.view(taps, -1)
        self._flat_results = self._results.view(TILE**2, -1)

    def convolve(self, image: Tensor, top: int, left: int) -> Tensor:
        """4 x 4 x rows x columns x out results from H x W x C pixels; the next ones overwrite them.

        Args:
            image: around it are zeros.
            top, left: the pixel of the first result.
        """
        self._tiles.copy_(self._overlapping(image, top - 1, left - 1))
        torch.mm(self._transform, self._flat_tiles, out=self._flat_planes)
        torch.bmm(self._planes, self._filters, out=self._products)
        torch.mm(self._transform_back, self._summands, out=self._flat_results)
        return self._results

    def _overlapping(self, image: Tensor, top: int, left: int) -> Tensor:
        """The inputs of the tiles from this pixel on, 6 x 6 x rows x columns x C, a view."""
        height, width, _ = self._pixels.shape
        inside = top >= 0 and left >= 0
        if inside and top + height <= image.shape[0] and left + width <= image.shape[1]:
            pixels = image[top : top + height, left : left + width]
        else:
            pixels = self._pixels
            _copy_padded(image, top, left, pixels)
        row, column, _ = pixels.stride()
        strides = (row, column, TILE * row, TILE * column, 1)
        return pixels.as_strided(self._tiles.shape, strides)


def _copy_padded(image: Tensor, top: int, left: int, out: Tensor) -> None:
    """Fills h x w x C from the pixels of H x W x C from (top, left) on, or zeros outside it."""
    insides = []
    for axis, first in ((0, top), (1, left)):
        start, end = max(first, 0), min(first + out.shape[axis], image.shape[axis])
        insides.append((start, end - start))
        out.narrow(axis, 0, start - first).zero_()
        out.narrow(axis, end - first, first + out.shape[axis] - end).zero_()
    (row, rows), (column, columns) = insides
    inside = out[row - top : row - top + rows, column - left : column - left + columns]
    inside.copy_(image[row : row + rows, column : column + columns])


def _values(count: int) -> Tensor:
    """6 x count: what each coefficient of a polynomial adds to its value at each of the points."""
    powers = [[point**power for power in range(count)] for point in _POINTS]
    leading = [float(power == count - 1) for power in range(count)]  # the value at infinity
    return torch.tensor([*powers, leading], dtype=torch.float64)


@cache
def _transforms() -> tuple[Tensor, Tensor]:
    """36 x 36 from inputs to planes and 16 x 36 from products to results, float32."""
    inputs, results = torch.linalg.inv(_values(_TAPS)).T, _values(TILE).T
    return tuple(torch.kron(step, step).float() for step in (inputs, results))  # type: ignore[return-value]
