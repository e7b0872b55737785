"""The head that predicts the flow of every pixel: direction, map, and no say for padding."""

import pytest
import torch

from geopose import keys
from geopose.models.build import build_model
from geopose.models.heads import FlowOrientationHead, Orientation, mean_direction
from tests.models.test_models import HEADS, run, tiny_config


def test_agreeing_flow_gives_a_unit_direction_and_opposed_flow_gives_none() -> None:
    head = FlowOrientationHead([4], embedding_size=4).eval()
    last = head.flow[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([3.0, 4.0]))
        agreed = head([torch.randn(2, 4, 8, 8)])
        last.bias.zero_()
        none = head([torch.randn(2, 4, 8, 8)])
    assert agreed.flow is not None
    assert none.flow is not None
    unit = torch.tensor([[0.6, 0.8]] * 2)
    torch.testing.assert_close(mean_direction(agreed.flow), unit, atol=1e-3, rtol=0)
    torch.testing.assert_close(agreed.flow[0, :, 3, 5], torch.tensor([30.0, 40.0]))
    torch.testing.assert_close(mean_direction(none.flow), torch.zeros(2, 2))


class FlowOfPadding(torch.nn.Module):
    """A flow map that points right in a corner of it and strongly upwards in the rest."""

    reads_decoder, predicts_scale = True, False

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.inside = (slice(rows), slice(columns))

    def forward(self, maps: list[torch.Tensor]) -> Orientation:
        flow = torch.tensor([0.0, -50.0])[None, :, None, None] * torch.ones_like(maps[0][:, :1])
        flow[0, :, self.inside[0], self.inside[1]] = torch.tensor([1.0, 0.0])[:, None, None]
        return Orientation(None, flow=flow)


def test_padding_has_no_say_in_the_direction() -> None:
    head = {"_target_": HEADS + "FlowOrientationHead"}
    model = build_model(tiny_config(orientation_head=head)).eval()
    assert model.stride == 32  # an image of 50 x 70 is padded to 64 x 96, maps of 32 x 48 cells
    model.orientation_head = FlowOfPadding(25, 35)
    found = model(torch.rand(1, 3, 50, 70), torch.full((1, 1), 0.5))
    direction = found[keys.OUTPUT_VFLOW_DIRECTION]
    torch.testing.assert_close(direction, torch.tensor([[1.0, 0.0]]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("upsamplings", [0, 1])
def test_flow_map_has_the_images_size_whatever_the_height_head_does(upsamplings: int) -> None:
    agl_head = {"_target_": HEADS + "AGLHead", "num_upsample_blocks": upsamplings}
    head = {"_target_": HEADS + "FlowOrientationHead", "embedding_size": 4}
    model = build_model(tiny_config(agl_head=agl_head, orientation_head=head))
    for size in ((64, 96), (50, 70)):
        assert run(model, 1, 3, *size)[keys.OUTPUT_FLOW_MASK].shape == (1, 2, *size)
