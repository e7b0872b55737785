"""Layers of decoder and heads, one by one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geopose.models.blocks import GsdConv, ResidualDeconvolution


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1), (2, 2)])
def test_gsd_without_a_plane_is_gsd_as_a_plane(size):
    torch.manual_seed(0)
    conv = GsdConv(6, 5)
    x, gsd_m = torch.randn(3, 6, *size), torch.tensor([[0.3], [1.0], [2.5]])
    plane = gsd_m[:, :, None, None].expand(3, 1, *size)
    expected = F.conv2d(torch.cat([x, plane], 1), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x, gsd_m), expected, atol=1e-5, rtol=0)
    traced = torch.jit.trace(conv, (x, gsd_m), check_trace=False)
    torch.testing.assert_close(traced(x, gsd_m), expected, atol=1e-5, rtol=0)
    assert "aten::sub_" not in str(traced.graph)


def test_gradients_of_gsd_without_a_plane():
    conv = GsdConv(2, 3).double()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    gsd_m = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(conv, {"weight": w, "bias": conv.bias}, (x, gsd_m)),
        (x, conv.weight),
    )


def test_the_mean_of_four_channels():
    block = ResidualDeconvolution(8)
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    x = torch.arange(8.0).reshape(1, 8, 1, 1).expand(1, 8, 3, 3)
    torch.testing.assert_close(block(x)[0, :, 0, 0], torch.tensor([1.5, 5.5]))


def test_gradients_of_gsd_copy_no_map():
    """torch's own gradients of changes to parts of a map would copy the map for each of them."""
    conv = GsdConv(2, 3)
    y = conv(torch.randn(2, 2, 8, 8), torch.tensor([[0.5], [2.0]]))
    names = set()
    nodes = [y.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    assert "_AddPlaneBackward" in names
    assert not {name for name in names if name.startswith("CopySlices")}
