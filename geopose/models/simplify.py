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
from pytorch_toolbelt.modules.decoders.unet import UNetDecoder
from pytorch_toolbelt.modules.upsample import BilinearInterpolationLayer
from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import Tensor, nn

from geopose.errors import one_line
from geopose.models.blocks import (
    DenseUnetBlock,
    GsdConv,
    InvertedUnetBlock,
    ResidualDeconvolution,
    ResidualUnetBlock,
    UnetBlock,
)
from geopose.models.fused import (
    SAME_CONV,
    FusedConv,
    FusedGsdConv,
    FusedMobileBlock,
    FusedResidualBlock,
    LastConv,
    SqueezeGate,
)
from geopose.models.heads import AGLHead, SimpleAGLHead
from geopose.models.strips import (
    BilinearRows,
    DeconvolutionRows,
    HeightBranch,
    StripDecoder,
    StripHead,
    StripStage,
    StripTrunk,
)

logger = logging.getLogger(__name__)

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
    try:
        simple, difference = _simplified(model)
    except Exception as error:  # layers unheard of: whatever they raise, the network itself works
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        logger.warning("the network cannot be simplified (%s)", reason)
        return model
    if not difference <= _LARGEST_DIFFERENCE:
        logger.warning("the network cannot be simplified (answers differ by %.1e)", difference)
        return model
    return simple


def _simplified(model: nn.Module) -> tuple[nn.Module, float]:
    """The new network, and how much its answers differ."""
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
        _replace_decoder(simple)
        _replace_heads(simple)
        return simple, _difference(model(image, gsd_m), simple(image, gsd_m))


def _difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Largest difference of any output relative to its largest value; NaN if any is NaN."""
    differences = [
        (found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp(min=1e-6)
        for key in expected
        if "angle" not in key.lower()  # jumps by a whole turn; the direction says the same
    ]
    return float(torch.stack(differences).max())


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
        # Whoever takes it in a later version takes what an activation made of it in place.
        takers = [
            c
            for c in self._calls
            if c is not call and c.taken[0] is given and c.taken[1] == version
        ]
        if len(takers) != 1:
            return None
        taker = takers[0]
        return taker if isinstance(taker.module, kinds) and self.once(taker) else None


def _fuse_convolutions(model: nn.Module, calls: list[_Call]) -> None:
    """Replaces convolutions with the BatchNorm and the activation that follow them."""
    chain = _Chain(calls)
    for call in calls:
        conv = call.module
        if not isinstance(conv, nn.Conv2d) or not chain.once(call) or conv.padding_mode != "zeros":
            continue
        if type(conv) is not nn.Conv2d and type(conv).__name__ != SAME_CONV:
            continue  # a GsdConv, or one that does something else with its weights
        norm = chain.follower(call, _NORMS)
        act = None
        if norm is not None and isinstance(norm.module, BatchNormAct2d):
            act_module: nn.Module | None = norm.module.act
        else:
            act = chain.follower(norm or call, _ACTIVATIONS)
            act_module = act.module if act else None
        _set(model, call.name, FusedConv(conv, norm.module if norm else None, act_module))
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


def _replace_decoder(model: nn.Module) -> None:
    """A decoder of known layers runs strip by strip."""
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, UNetDecoder):
        return
    ups = [_rows_of(up) for up in decoder.upsamples]
    blocks = list(decoder.blocks)
    if None in ups or not all(map(_is_local, blocks)):
        return
    stages = [StripStage(up, block) for up, block in zip(ups, blocks, strict=True)]  # type: ignore[arg-type]
    model.decoder = StripDecoder(stages)


def _is_local(block: nn.Module) -> bool:
    """Whether a block of a decoder sees nothing but neighbours, by fused convolutions."""
    known = isinstance(block, (UnetBlock, FusedResidualBlock, DenseUnetBlock, InvertedUnetBlock))
    strange = (nn.Conv2d, ResidualUnetBlock, InvertedResidual, SqueezeGate)
    return known and not any(isinstance(module, strange) for module in block.modules())


def _rows_of(up: nn.Module) -> nn.Module | None:
    """What gives single rows of this enlarging layer, if there is such a thing."""
    if isinstance(up, ResidualDeconvolution):
        return DeconvolutionRows(up)
    aligned = isinstance(up, BilinearInterpolationLayer) and up.align_corners
    return BilinearRows() if aligned else None


def _replace_heads(model: nn.Module) -> None:
    """Height heads run strip by strip, with fewer operations."""
    head = getattr(model, "agl_head", None)
    if isinstance(head, SimpleAGLHead):
        trunks = [_upsampled_trunk(branch) for branch in (head.height, head.magnitude)]  # type: ignore[arg-type]
        model.agl_head = StripHead(nn.Identity(), trunks, head.stride, output_gain=1.0)
    elif isinstance(head, AGLHead) and head.ends_with_relu():
        branches = [_branch(*head.height)]
        if head.predicts_magnitude:
            branches.append(_branch(*head.magnitude))
        before, trunk = _shared_trunk(list(head.upsample), branches)
        model.agl_head = StripHead(before, [trunk], head.stride, head.output_gain)


def _shared_trunk(
    layers: list[nn.Module], branches: list[HeightBranch]
) -> tuple[nn.Module, StripTrunk]:
    """An `AGLHead`'s enlargements but the last one, and what follows."""
    ups = [n for n, layer in enumerate(layers) if isinstance(layer, ResidualDeconvolution)]
    if not ups:
        return nn.Identity(), StripTrunk(None, nn.Identity(), branches)
    at = ups[-1]
    up = DeconvolutionRows(layers[at], layers[at - 1])  # type: ignore[arg-type]
    shared = nn.Sequential(*layers[at + 1 :])
    return nn.Sequential(*layers[: at - 1]), StripTrunk(up, shared, branches)


def _upsampled_trunk(branch: nn.Module) -> StripTrunk:
    """One of a `SimpleAGLHead`'s branches."""
    mix, deconvolution = branch.up  # type: ignore[misc]
    shared = nn.Sequential(branch.conv1, branch.act1)  # type: ignore[arg-type]
    return StripTrunk(
        DeconvolutionRows(deconvolution, mix), shared,
        [_branch(branch.conv2, branch.act2, branch.conv3)],  # type: ignore[arg-type]
    )  # fmt: skip


def _branch(conv: nn.Module, act: nn.Module, last: nn.Module) -> HeightBranch:
    if isinstance(conv, GsdConv):
        return HeightBranch(FusedGsdConv(conv, act), LastConv(last))  # type: ignore[arg-type]
    return HeightBranch(nn.Sequential(conv, act), LastConv(last))  # type: ignore[arg-type]
