"""A trained network in, the same function out with fewer operations: for inference only.

BatchNorms are folded into convolutions, activations and shortcuts appended to them, squeeze-excite
factors multiplied into weights instead of maps (see `geopose.models.fused`). Which convolution
feeds which BatchNorm is observed in a run, not guessed from names, so any encoder will do; what is
not recognised stays as it is, and a network that answers differently afterwards is not used.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import Tensor, nn

from geopose.models.blocks import GsdConv, ResidualUnetBlock
from geopose.models.fused import (
    FusedConv,
    FusedGsdConv,
    FusedMobileBlock,
    FusedResidualBlock,
    LastConv,
    StripBranch,
)
from geopose.models.heads import AGLHead, SimpleAGLHead

_LOG = logging.getLogger(__name__)

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Mish, nn.GELU)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_PROBE_PX = 64
_LARGEST_DIFFERENCE = 1e-3  # relative to the largest value of an output, float32


@dataclass
class _Call:
    """One call of a layer during the observed run; tensors are kept, so that ids stay unique."""

    name: str
    module: nn.Module
    taken: tuple[Tensor, int]  # the input and how often it had been changed in place
    given: tuple[Tensor, int]


def simplify(model: nn.Module) -> nn.Module:
    """A network that answers as the given one with fewer operations; float32, on the CPU, eval.

    Args:
        model: a `GeoposeUNetModel` in eval mode. It is left as it is.

    Returns:
        A new network with the same inputs and outputs, or the given one (with a warning) if the
        new one does not give the same numbers to 1e-3.
    """
    simple = copy.deepcopy(model)
    stride = int(getattr(model, "stride", _PROBE_PX))
    size = -(-_PROBE_PX // stride) * stride
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, size, size, generator=generator)
    gsd_m = torch.tensor([[0.5]])
    with torch.no_grad():
        calls = _observe(simple, image, gsd_m)
        _fuse_convolutions(simple, calls)
        _replace_blocks(simple)
        _replace_heads(simple)
        difference = _difference(model(image, gsd_m), simple(image, gsd_m))
    if not difference <= _LARGEST_DIFFERENCE:
        _LOG.warning("the network cannot be simplified (answers differ by %.1e)", difference)
        return model
    return simple


def _difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Largest difference of any output relative to its largest value."""
    return max(
        float((found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp(min=1e-6))
        for key in expected
        if "angle" not in key.lower()  # jumps by a whole turn; the direction says the same
    )


def _observe(model: nn.Module, image: Tensor, gsd_m: Tensor) -> list[_Call]:
    """All calls of convolutions, BatchNorms and activations in one run."""
    calls: list[_Call] = []

    def hook(name: str, version: dict[str, int]) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            version[name] = inputs[0]._version

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taken = (inputs[0], version[name])
            calls.append(_Call(name, module, taken, (output, output._version)))

        return before, after

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, *_NORMS, *_ACTIVATIONS)):
            before, after = hook(name, {})
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
    try:
        model(image, gsd_m)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _Chain:
    """Finds what follows a layer."""

    def __init__(self, calls: list[_Call]) -> None:
        self._calls = calls
        self._names = [call.name for call in calls]

    def once(self, call: _Call) -> bool:
        """Whether the layer is used at a single place."""
        return self._names.count(call.name) == 1

    def follower(self, call: _Call, kinds: tuple[type[nn.Module], ...]) -> _Call | None:
        """The only layer that takes what this one gave, unchanged, if it is of these kinds."""
        given, version = call.given
        takers = [c for c in self._calls if c is not call and c.taken[0] is given]
        if len(takers) != 1 or takers[0].taken[1] != version:
            return None
        taker = takers[0]
        return taker if isinstance(taker.module, kinds) and self.once(taker) else None


def _fuse_convolutions(model: nn.Module, calls: list[_Call]) -> None:
    """Replaces convolutions with the BatchNorm and the activation that follow them."""
    chain = _Chain(calls)
    for call in calls:
        if not isinstance(call.module, nn.Conv2d) or isinstance(call.module, GsdConv):
            continue
        if not chain.once(call) or call.module.padding_mode != "zeros":
            continue
        norm = chain.follower(call, _NORMS)
        act = None
        if norm is not None and isinstance(norm.module, BatchNormAct2d):
            act_module: nn.Module | None = norm.module.act
        else:
            act = chain.follower(norm or call, _ACTIVATIONS)
            act_module = act.module if act else None
        _set(model, call.name, FusedConv(call.module, norm.module if norm else None, act_module))
        for absorbed in (norm, act):
            if absorbed is not None:
                _set(model, absorbed.name, nn.Identity())


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _replace_blocks(model: nn.Module) -> None:
    """Replaces blocks that can do without passes over their maps, now that they are fused."""
    for name, module in list(model.named_modules()):
        block = _simple_block(module)
        if block is not None:
            _set(model, name, block)


def _simple_block(block: nn.Module) -> nn.Module | None:
    if isinstance(block, ResidualUnetBlock):
        stages = [
            block.conv1.depthwise, block.conv1.pointwise,
            block.conv2, block.conv3.depthwise, block.conv3.pointwise,
        ]  # fmt: skip
        norms = [block.norm1, block.norm2, block.norm3, block.act1, block.act2, block.act3]
        if _all_fused([*stages, block.identity], norms):
            return FusedResidualBlock(stages, block.identity)  # type: ignore[arg-type]
    if isinstance(block, InvertedResidual) and block.conv_s2d is None:
        convs = [block.conv_pw, block.conv_dw, block.conv_pwl]
        if _all_fused(convs, [block.bn1, block.bn2, block.bn3, block.aa]):
            return FusedMobileBlock(convs[:2], block.se, convs[2], block.has_skip)
    if isinstance(block, DepthwiseSeparableConv) and block.conv_s2d is None:
        convs = [block.conv_dw, block.conv_pw]
        if _all_fused(convs, [block.bn1, block.bn2, block.aa]):
            return FusedMobileBlock(convs[:1], block.se, convs[1], block.has_skip)
    return None


def _all_fused(convs: Sequence[nn.Module], absorbed: Sequence[nn.Module | None]) -> bool:
    return all(isinstance(conv, FusedConv) for conv in convs) and all(
        isinstance(module, nn.Identity) for module in absorbed
    )


def _replace_heads(model: nn.Module) -> None:
    """The convolutions around gsd, and the last ones of the height heads."""
    head = getattr(model, "agl_head", None)
    if isinstance(head, SimpleAGLHead):
        head.height, head.magnitude = (_strips(b) for b in (head.height, head.magnitude))  # type: ignore[assignment]
    elif isinstance(head, AGLHead):
        head.height[0] = FusedGsdConv(head.height[0], head.height[1])  # type: ignore[arg-type]
        head.height[1] = nn.Identity()
        for branch in (head.height, getattr(head, "magnitude", None)):
            if branch is not None:
                branch[2] = LastConv(branch[2])  # type: ignore[arg-type]


def _strips(branch: nn.Module) -> StripBranch:
    second: nn.Module = branch.conv2  # type: ignore[assignment]
    if isinstance(second, GsdConv):
        second = FusedGsdConv(second, branch.act2)  # type: ignore[arg-type]
    else:
        second = nn.Sequential(second, branch.act2)  # type: ignore[arg-type]
    first = nn.Sequential(branch.conv1, branch.act1)  # type: ignore[arg-type]
    last = LastConv(branch.conv3)  # type: ignore[arg-type]
    return StripBranch(branch.up, first, second, last, branch.uses_gsd)  # type: ignore[arg-type]
