"""Mean and deviation of a network's input: a property of the model, from training to every file."""

from typing import Any

import numpy as np
import pytest
import torch

from geopose.errors import InputError
from geopose.models.build import build_model, normalization
from geopose.models.normalization import IMAGENET, Normalization, denormalize_image, normalize_image
from tests.models.test_models import tiny_config

OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.125]}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_values_and_the_way_back(order: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    own = Normalization.from_config(OWN, "model.normalization")
    found = normalize_image(rgb, order, own).numpy()
    planes = np.moveaxis(rgb if order == "rgb" else rgb[..., ::-1], -1, 0)
    mean, std = (np.array(OWN[key])[:, None, None] for key in ("mean", "std"))
    assert found == pytest.approx((planes / 255 - mean) / std, abs=1e-5)
    np.testing.assert_array_equal(denormalize_image(torch.from_numpy(found), order, own), rgb)


def test_a_config_without_it_means_imagenet() -> None:
    assert normalization(tiny_config()) == IMAGENET
    build_model({**tiny_config(), "normalization": OWN}, load_pretrained=False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0.5, 0.5], "normalization"),
        ({"mean": [0.5] * 3}, "normalization"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5]}, "std"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"mean": [0.5, "x", 0.5], "std": [0.5] * 3}, "mean"),
        ({"mean": [0.5, float("nan"), 0.5], "std": [0.5] * 3}, "mean"),
        ({"mean": [True, 0.5, 0.5], "std": [0.5] * 3}, "mean"),
    ],
)
def test_what_it_cannot_be(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        normalization({**tiny_config(), "normalization": value})


@pytest.mark.parametrize("name", ["tf_efficientnetv2_s_in21ft1k", "resnet18.no_such_tag", ""])
def test_an_encoder_whose_weights_are_not_listed_has_none(name: str) -> None:
    config = tiny_config(encoder={"name": name})
    with pytest.raises(InputError, match=r"model\.normalization|encoder\.name"):
        normalization({**config, "normalization": "encoder"})
    assert normalization({**config, "normalization": None}) == IMAGENET
