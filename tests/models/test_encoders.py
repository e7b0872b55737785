"""Encoders of other families, and what the shipped options say of the images they take."""

from typing import Any

import pytest
import torch
from timm.models import get_pretrained_cfg

from geopose.construct import plain
from geopose.errors import InputError
from geopose.models.build import build_model, normalization
from geopose.models.encoders import VitEncoder
from geopose.models.normalization import IMAGENET, Normalization
from tests.training_run import CONFIGS, composed

MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def test_a_plain_transformer_becomes_a_pyramid() -> None:
    torch.manual_seed(0)
    encoder = VitEncoder("test_vit2", pretrained=False, channels=(8, 16, 24, 32)).eval()
    assert (encoder.channels, encoder.strides) == ((8, 16, 24, 32), (4, 8, 16, 32))
    with torch.no_grad():
        for height, width in ((64, 96), (160, 32)):  # neither is the size it was made for
            maps = encoder(torch.randn(2, 3, height, width))
            assert [tuple(x.shape) for x in maps] == [
                (2, 8, height // 4, width // 4),
                (2, 16, height // 8, width // 8),
                (2, 24, height // 16, width // 16),
                (2, 32, height // 32, width // 32),
            ]


def test_depths_of_a_transformer_can_be_chosen() -> None:
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = []
        for layers in (None, [1, 3, 5, 7], [0, 3, 5, 7]):
            torch.manual_seed(0)
            found.append(VitEncoder("test_vit2", False, layers=layers).eval()(image))
    assert torch.equal(found[0][0], found[1][0])  # of eight blocks
    assert not torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][1], found[2][1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "resnet18"}, "plain transformer"),
        ({"name": "no_such_net"}, "no_such_net"),
        ({"name": "test_vit2", "layers": [1, 2]}, "four whole numbers"),
        ({"name": "test_vit2", "layers": [1, 3, 5, 99]}, "99"),
        ({"name": "test_vit2", "channels": [8, 8, 8]}, "four whole numbers"),
        ({"name": "vit_small_patch14_dinov2", "channels": [8, 8, 8, 8]}, "multiple of 4"),
    ],
)
def test_a_transformer_that_cannot_be_one(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        VitEncoder(**{"pretrained": False, **arguments})


@pytest.mark.parametrize("model", MODELS)
def test_images_are_normalised_as_the_encoder_learned_them(model: str) -> None:
    cfg = plain(composed(f"model={model}"))["model"]
    with torch.device("meta"):
        network = build_model(cfg, load_pretrained=False)
        strides = network.encoder.strides
        maps = network.encoder(torch.zeros(1, 3, 64, 96))  # type: ignore[operator]
    assert [tuple(x.shape[-2:]) for x in maps] == [(64 // s, 96 // s) for s in strides]  # type: ignore[union-attr]
    if "normalization" in cfg:
        known = get_pretrained_cfg(cfg["encoder"]["name"])
        assert known is not None
        assert normalization(cfg) == Normalization(known.mean, known.std)
    else:  # the published ones, and what starts from random weights
        assert cfg["encoder"]["pretrained"] is False or "toolbelt" in cfg["encoder"]["_target_"]
        assert normalization(cfg) == IMAGENET


def test_satellite_weights_have_their_own() -> None:
    cfg = plain(composed("model=vit_large_sat_unet"))["model"]
    assert normalization(cfg) == Normalization((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))
    assert normalization({**cfg, "normalization": None}) == IMAGENET
