"""BatchNorm folded into the convolution before it: a network in, the same with fewer passes out.

For GPUs, where a pass over the maps costs what memory can move. torch's own function makes the
weights; which BatchNorm follows which convolution is seen by running the network once.
"""

import copy
import logging

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

logger = logging.getLogger(__name__)

_LARGEST_DIFFERENCE = 1e-3  # of an answer, as a share of its largest value
_Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


def folded(model: nn.Module) -> nn.Module:
    """A network without the BatchNorms that follow a convolution; itself, if it then differs.

    Args:
        model: (image, gsd) -> outputs by name; in eval mode, float32, on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    shown = torch.randn(1, 3, 64, 64, generator=generator), torch.full((1, 1), 0.5)
    result = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(*shown)
        for conv, norm in _pairs(result, shown):
            _fold(result, conv, norm)
        found = result(*shown)
    if all(_is_close(found[key], expected[key]) for key in expected):
        return result
    logger.warning("a network answers otherwise with BatchNorm folded; it runs as it is")
    return model


def _is_close(found: Tensor, expected: Tensor) -> bool:
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) <= _LARGEST_DIFFERENCE * max(largest, 1.0)


def _pairs(model: nn.Module, shown: tuple[Tensor, Tensor]) -> _Pairs:
    """Convolutions, each with the BatchNorm that takes what it has made."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the maps, or their ids would be reused
    pairs: _Pairs = []

    def after_conv(conv: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        made[id(output)] = conv, output

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            handles.append(module.register_forward_pre_hook(before_norm))
    model(*shown)
    for handle in handles:
        handle.remove()
    return pairs


def _fold(model: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    names = {module: name for name, module in model.named_modules()}
    rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
    model.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
    model.set_submodule(names[norm], nn.Sequential(*rest))
