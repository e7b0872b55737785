"""Networks: shapes at any size, units, heads, pretrained handling, and what configs may say."""

import logging
import socket
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geopose import keys
from geopose.errors import InputError
from geopose.geometry import angle_to_vector
from geopose.losses.terms import MSELossWithIgnore
from geopose.losses.total import build_loss
from geopose.models import blocks, timm_models
from geopose.models.blocks import (
    BLOCK_TYPES,
    UPSAMPLES,
    DenseUnetBlock,
    InvertedUnetBlock,
    ResidualDeconvolution,
)
from geopose.models.build import build_model, channel_order, model_slug
from geopose.models.encoders import TimmEncoder
from geopose.models.geopose_unet import GeoposeUNetModel, least_squares_scale
from geopose.models.heads import (
    AGL_HEADS,
    ORIENTATION_HEADS,
    BasicOrientationScaleHead,
    HyperColumnAGLHead,
)
from geopose.models.legacy import published_to_current, rename_state_dict

HEADS = "geopose.models.heads."


def tiny_config(**changes: dict[str, Any]) -> dict[str, Any]:
    """The smallest network, with whole parts or single keys of parts replaced."""
    config: dict[str, Any] = {
        "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
        "slug": "tiny",
        "channel_order": "rgb",
        "encoder": {
            "_target_": "geopose.models.encoders.TimmEncoder",
            "name": "test_efficientnet",
            "pretrained": False,
        },
        "decoder": {"channels": [8, 8, 8, 8]},
        "agl_head": {"_target_": HEADS + "AGLHead"},
        "orientation_head": {"_target_": HEADS + "BasicOrientationHead"},
    }
    for name, change in changes.items():
        keep = {} if "_target_" in change else config[name]
        config[name] = {**keep, **change}
    return config


def run(model: GeoposeUNetModel, *shape: int) -> dict[str, Tensor]:
    """Output for a random batch, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=generator)
    with torch.inference_mode():
        return model.eval()(image, torch.full((shape[0], 1), 0.4))


def assert_whole(output: dict[str, Tensor], n: int, height: int, width: int) -> None:
    """The contract of the outputs: names, shapes, float32, ranges."""
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes.pop(keys.OUTPUT_FLOW_MASK, (n, 2, height, width)) == (n, 2, height, width)
    assert shapes == {
        keys.OUTPUT_AGL_MASK: (n, 1, height, width),
        keys.OUTPUT_MAGNITUDE_MASK: (n, 1, height, width),
        keys.OUTPUT_VFLOW_SCALE: (n, 1),
        keys.OUTPUT_VFLOW_ANGLE: (n, 1),
        keys.OUTPUT_VFLOW_DIRECTION: (n, 2),
    }
    for value in output.values():
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
    assert (output[keys.OUTPUT_AGL_MASK] >= 0).all()
    assert (output[keys.OUTPUT_VFLOW_SCALE] >= 0).all()
    unit = torch.nn.functional.normalize(output[keys.OUTPUT_VFLOW_DIRECTION])
    found = angle_to_vector(output[keys.OUTPUT_VFLOW_ANGLE][:, 0])
    assert torch.allclose(found, unit, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (1, 1), (33, 32), (5, 200)])
def test_any_image_size_comes_back_exactly(size: tuple[int, int]) -> None:
    assert_whole(run(build_model(tiny_config()), 2, 3, *size), 2, *size)


def test_padding_does_not_take_part_in_the_scale() -> None:
    output = run(build_model(tiny_config()), 2, 3, 45, 70)
    expected = least_squares_scale(output[keys.OUTPUT_AGL_MASK], output[keys.OUTPUT_MAGNITUDE_MASK])
    assert torch.equal(output[keys.OUTPUT_VFLOW_SCALE], expected)


def test_scale_by_hand_and_in_float32() -> None:
    height = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    scale = least_squares_scale(height, height * 3.0)
    assert scale.tolist() == [[pytest.approx(15.0 / 5.01)], [0.0]]
    many = torch.full((1, 1, 512, 512), 30.0, dtype=torch.float16)  # h*h sums far above 65504
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert least_squares_scale(many, many * 2.0).item() == pytest.approx(2.0, rel=1e-6)


def test_batch_gives_what_single_images_give() -> None:
    model = build_model(tiny_config()).eval()
    images = torch.randn(3, 3, 64, 96)
    gsd = torch.tensor([[0.3], [0.5], [0.7]])
    with torch.inference_mode():
        together = model(images, gsd)
        alone = [model(images[i : i + 1], gsd[i : i + 1]) for i in range(3)]
    for name, value in together.items():
        single = torch.cat([output[name] for output in alone])
        assert torch.allclose(value, single, atol=1e-4), name


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_decoder_options(block_type: str, upsample: str) -> None:
    decoder = {"block_type": block_type, "upsample": upsample, "activation": "relu"}
    assert_whole(run(build_model(tiny_config(decoder=decoder)), 1, 3, 40, 64), 1, 40, 64)


@pytest.mark.parametrize(
    ("agl_head", "orientation_head"),
    [
        ({"_target_": "AGLHead", "num_upsample_blocks": 0, "embedding_size": 4}, "Basic"),
        ({"_target_": "AGLHead", "dropout_rate": 0.3, "output_gain": 10.0}, "Dense"),
        ({"_target_": "SimpleAGLHead", "embedding_size": 6}, "Basic"),
        ({"_target_": "HyperColumnAGLHead", "dropout_rate": 0.1}, "BasicScale"),
        ({"_target_": "OnlyAGLHead"}, "BasicScale"),
        ({"_target_": "AGLHead", "num_upsample_blocks": 0}, "Flow"),
    ],
)
def test_heads_train_and_predict(agl_head: dict[str, Any], orientation_head: str) -> None:
    names = {
        "Basic": "BasicOrientationHead",
        "Dense": "DenseOrientationHead",
        "Flow": "FlowOrientationHead",
    }
    orientation = names.get(orientation_head, "BasicOrientationScaleHead")
    model = build_model(
        tiny_config(
            agl_head={**agl_head, "_target_": HEADS + agl_head["_target_"]},
            orientation_head={"_target_": HEADS + orientation},
        )
    )
    assert_whole(run(model, 2, 3, 50, 64), 2, 50, 64)
    output = model.train()(torch.randn(2, 3, 64, 64), torch.full((2, 1), 0.5))
    loss = MSELossWithIgnore()
    total = sum(loss(value, torch.ones_like(value)) for value in output.values())
    assert isinstance(total, Tensor)
    total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []


PAIRS = [
    pair
    for pair in product(AGL_HEADS, ORIENTATION_HEADS)
    # The others have no scale: refused, see test_bad_configs_name_what_is_wrong.
    if not pair[0].endswith("OnlyAGLHead") or pair[1].endswith("ScaleHead")
]
COMBINATIONS = [
    *({"decoder": {"block_type": b, "upsample": u}} for b, u in product(BLOCK_TYPES, UPSAMPLES)),
    *({"agl_head": {"_target_": a}, "orientation_head": {"_target_": o}} for a, o in PAIRS),
]


@pytest.mark.parametrize("parts", COMBINATIONS, ids=str)
def test_every_parameter_of_every_combination_gets_a_gradient(parts: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = build_model(tiny_config(**parts)).train()
        output = model(torch.zeros(2, 3, 45, 70), torch.zeros(2, 1))
        torch.stack([value.mean() for value in output.values()]).sum().backward()
    assert output[keys.OUTPUT_AGL_MASK].shape == (2, 1, 45, 70)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_hypercolumn_sums_a_convolution_of_every_map_by_hand() -> None:
    head = HyperColumnAGLHead([4, 6], [2, 4]).eval()
    fine, coarse = torch.randn(2, 4, 8, 12), torch.randn(2, 6, 4, 6)
    gsd = torch.tensor([[0.3], [0.6]])

    def convolved(x: Tensor, conv: torch.nn.Module) -> Tensor:
        assert isinstance(conv, torch.nn.Conv2d)
        assert conv.kernel_size == (3, 3)
        y = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
        return torch.nn.functional.interpolate(y, size=(8, 12), mode="bilinear", align_corners=True)

    height, magnitude = head([fine, coarse], gsd)
    planes = [gsd[:, :, None, None].expand(-1, 1, *x.shape[2:]) for x in (fine, coarse)]
    with_planes = [torch.cat(pair, dim=1) for pair in zip((fine, coarse), planes, strict=True)]
    expected = sum(convolved(x, c) for x, c in zip(with_planes, head.height, strict=True))
    assert torch.allclose(height, torch.relu(torch.as_tensor(expected)), atol=1e-6)
    expected = sum(convolved(x, c) for x, c in zip((fine, coarse), head.magnitude, strict=True))
    assert torch.allclose(magnitude, torch.relu(torch.as_tensor(expected)), atol=1e-6)


def test_scale_head_pools_dense_votes() -> None:
    head = BasicOrientationScaleHead([4, 6], num_layers=0).eval()
    coarse = torch.randn(2, 6, 3, 5)
    found = head([torch.randn(2, 4, 6, 10), coarse])
    pooled = coarse.mean(dim=(2, 3))  # with one linear layer, pooling may come first
    direction = torch.nn.functional.linear(
        pooled, head.direction.weight[:, :, 0, 0], head.direction.bias
    )
    assert torch.allclose(found.direction, direction, atol=1e-6)
    votes = torch.nn.functional.linear(pooled, head.scale.weight[:, :, 0, 0], head.scale.bias)
    assert torch.allclose(found.scale, torch.nn.functional.softplus(votes), atol=1e-6)


def test_dense_block_feeds_its_second_half_with_both() -> None:
    block = DenseUnetBlock(6, 4).eval()
    x = torch.randn(1, 6, 8, 8)
    assert torch.equal(block(x), block.block2(torch.cat([x, block.block1(x)], dim=1)))


def test_inverted_block_is_two_of_timms() -> None:
    block = InvertedUnetBlock(6, 4)
    assert all(isinstance(part, blocks.InvertedResidual) for part in block)
    assert [part.has_skip for part in block] == [False, True]


PUBLISHED_SPELLINGS: dict[str, dict[str, Any]] = {
    "hydra": {"_recursive_": False},
    "first_conv": {"encoder": {"first_conv_stride_one": False, "_recursive_": False}},
    "channels": {"num_channels": 3},
    "toolbelt": {"decoder": {"channels": None, "decoder_features": [8, 8, 8, 8]}},
    "in_place": {"agl_head": {"inplace": True}, "orientation_head": {"dropout": 0.2}},
    "activation": {"decoder": {"activation": "swish"}},
}


@pytest.mark.parametrize("name", PUBLISHED_SPELLINGS)
def test_published_spellings_build_the_same_network(name: str) -> None:
    config = tiny_config()
    for part, change in PUBLISHED_SPELLINGS[name].items():
        whole = {**config[part], **change} if isinstance(change, dict) else change
        if isinstance(whole, dict):
            whole = {key: value for key, value in whole.items() if value is not None}
        config[part] = whole
    with torch.device("meta"):
        assert str(build_model(config)) == str(build_model(tiny_config()))
    assert (model_slug(config), channel_order(config)) == ("tiny", "rgb")


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("encoder", {"first_conv_stride_one": True}, "first_conv_stride_one"),
        ("decoder", {"normalization": "group_norm"}, "group_norm"),
        ("decoder", {"decoder_features": [8, 8, 8, 8]}, "channels"),
        ("agl_head", {"_partial_": True}, "_partial_"),
    ],
)
def test_published_keys_that_would_ask_for_another_network(
    part: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        build_model(tiny_config(**{part: change}))


def test_scale_votes_replace_least_squares_and_magnitude_follows() -> None:
    model = build_model(
        tiny_config(
            agl_head={"_target_": HEADS + "OnlyAGLHead"},
            orientation_head={"_target_": HEADS + "BasicOrientationScaleHead"},
        )
    )
    output = run(model, 2, 3, 64, 64)
    scale = output[keys.OUTPUT_VFLOW_SCALE]
    expected = output[keys.OUTPUT_AGL_MASK] * scale[:, :, None, None]
    assert torch.equal(output[keys.OUTPUT_MAGNITUDE_MASK], expected)


def test_height_depends_on_gsd_and_magnitude_does_not() -> None:
    model = build_model(tiny_config()).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        near, far = (model(image, torch.tensor([[gsd]])) for gsd in (0.3, 3.0))
    assert not torch.allclose(near[keys.OUTPUT_AGL_MASK], far[keys.OUTPUT_AGL_MASK])
    assert torch.equal(near[keys.OUTPUT_MAGNITUDE_MASK], far[keys.OUTPUT_MAGNITUDE_MASK])


def test_residual_deconvolution_is_the_published_one() -> None:
    layer = ResidualDeconvolution(8)
    x = torch.randn(2, 8, 5, 7)
    up = torch.nn.UpsamplingBilinear2d(scale_factor=2)(x)
    shortcut = up.reshape(2, 2, 4, 10, 14).mean(2)
    assert torch.allclose(layer(x), layer.conv(x) + shortcut, atol=1e-6)


def test_channels_last_gives_the_same() -> None:
    model = build_model(tiny_config())
    plain = run(model, 1, 3, 64, 96)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = run(model, 1, 3, 64, 96)
    for name, value in plain.items():
        assert torch.allclose(value, last[name], atol=1e-4), name


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100"])
def test_other_timm_families(name: str) -> None:
    with torch.device("meta"):
        encoder = TimmEncoder(name, pretrained=False)
        maps = encoder(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == list(encoder.channels)
    assert [64 // m.shape[2] for m in maps] == list(encoder.strides)


def test_config_as_one_argument_as_keywords_and_nested() -> None:
    config = tiny_config()
    parts = {k: v for k, v in config.items() if k != "_target_"}
    names = set(GeoposeUNetModel.from_config(parts).state_dict())
    assert set(GeoposeUNetModel.from_config(**parts).state_dict()) == names
    nested = {"_target_": config["_target_"], "config": parts}
    assert set(build_model(nested).state_dict()) == names
    assert (channel_order(nested), model_slug(nested)) == ("rgb", "tiny")


def test_a_config_that_says_no_channel_order_means_bgr() -> None:
    config = tiny_config()
    del config["channel_order"]
    assert channel_order(config) == "bgr"
    with pytest.raises(InputError, match="grb"):
        channel_order({**config, "channel_order": "grb"})


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("encoder", {"_target_": "os.system", "command": "exit"}, "os.system"),
        ("encoder", {"_target_": "geopose.models.timm_models.timm.create_model"}, "create_model"),
        ("encoder", {"_target_": "builtins.eval"}, "builtins.eval"),
        ("encoder", {"_target_": ["os", "system"]}, "os"),
        ("agl_head", {"_target_": "torch.hub.load"}, "torch.hub.load"),
        ("agl_head", {"num_upsample_block": 1}, "num_upsample_block"),
        ("agl_head", {"num_upsample_blocks": 3}, "finer than the image"),
        ("agl_head", {"channels": [1]}, "channels"),
        ("agl_head", {"activation": "tanhh"}, "tanhh"),
        ("agl_head", {"_target_": HEADS + "OnlyAGLHead"}, "BasicOrientationScaleHead"),
        ("orientation_head", {"_target_": HEADS + "DenseOrientationHead", "layer": 7}, "layer 7"),
        ("decoder", {"block": "unet"}, "block"),
        ("decoder", {"block_type": "vnet"}, "vnet"),
        ("decoder", {"upsample": "cubic"}, "cubic"),
        ("decoder", {"channels": [8, 8]}, "need 4"),
        ("decoder", {"channels": [8, 8, 8, "8"]}, "channels"),
        ("decoder", {"upsample": "rdtsc", "channels": [8, 8, 8, 6]}, "divisible by 4"),
        ("encoder", {"name": "no_such_net"}, "no_such_net"),
        ("encoder", {"name": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224"),
        ("encoder", {"layers": [1, 9]}, "layers"),
        ("encoder", {"pretrained": "maybe"}, "maybe"),
    ],
)  # fmt: skip
def test_bad_configs_name_what_is_wrong(part: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        build_model(tiny_config(**{part: change}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_target_": "os.system"}, "os.system"),
        ({"neck": {}}, "neck"),
        ({"_target_": None}, "None"),
    ],
)
def test_bad_model_nodes(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        build_model({**tiny_config(), **change})


def test_missing_parts_are_named() -> None:
    config = tiny_config()
    del config["decoder"]
    with pytest.raises(InputError, match="decoder"):
        build_model(config)


def test_weights_that_follow_are_never_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        timm_models, "_find_weights", lambda name: pytest.fail(f"looked for {name}")
    )
    model = build_model(tiny_config(encoder={"pretrained": True}), load_pretrained=False)
    assert all(weights.isfinite().all() for weights in model.parameters())


def test_pretrained_auto_warns_once_and_true_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: None)
    with caplog.at_level(logging.WARNING):
        TimmEncoder("resnet18", pretrained="auto")
    assert len(caplog.records) == 1
    assert "resnet18" in caplog.text
    with pytest.raises(InputError, match=r"resnet18.*pretrained=false"):
        TimmEncoder("resnet18", pretrained=True)


def test_unreachable_hub_is_noticed_without_its_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: None)
    with pytest.raises(InputError, match="cannot be reached"):
        TimmEncoder("resnet18", pretrained=True)


def test_cached_weights_are_used_without_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm

    donor = timm.create_model("test_efficientnet", pretrained=False)
    torch.save(donor.state_dict(), tmp_path / "weights.bin")
    path = str(tmp_path / "weights.bin")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: path)
    encoder = TimmEncoder("test_efficientnet", pretrained=True)
    stem = encoder.state_dict()["encoder.conv_stem.weight"]
    assert torch.equal(stem, donor.state_dict()["conv_stem.weight"])


def test_published_names() -> None:
    name = "decoder.blocks.2.abn1.bn.running_mean"
    assert published_to_current(name) == "decoder.blocks.2.norm1.running_mean"
    for same in (
        "encoder.encoder.bn1.weight",
        "agl_head.upsample.3.weight",
        "decoder.blocks.0.norm1.bias",
        "decoder.blocks.0.block1.conv1.depthwise.weight",
    ):
        assert published_to_current(same) == same
    before = ("conv1.weight", "norm1.bias", "conv2.weight", "conv3.weight", "norm3.running_var")
    now = ("conv_pw.weight", "bn1.bias", "conv_dw.weight", "conv_pwl.weight", "bn3.running_var")
    with torch.device("meta"):
        inverted = build_model(tiny_config(decoder={"block_type": "ir_unet"})).state_dict()
    for old, new in zip(before, now, strict=True):
        assert published_to_current(f"decoder.blocks.2.1.{old}") == f"decoder.blocks.2.1.{new}"
        assert f"decoder.blocks.2.1.{new}" in inverted
    with pytest.raises(InputError, match=r"norm1\.running_mean"):
        rename_state_dict({name: 1, "decoder.blocks.2.norm1.running_mean": 2})


def test_a_loss_on_an_output_that_the_model_lacks_is_named() -> None:
    loss = build_loss(
        {
            "losses": [
                {
                    "prefix": "flow",
                    "output_key": keys.OUTPUT_FLOW_MASK,
                    "target_key": keys.TARGET_FLOW_MASK,
                    "loss": {"_target_": "geopose.losses.MSELossWithIgnore"},
                }
            ]
        }
    )
    with pytest.raises(InputError, match="OUTPUT_FLOW_MASK"):
        loss.fitting([keys.OUTPUT_AGL_MASK], [keys.TARGET_FLOW_MASK])
    with pytest.raises(InputError, match="TARGET_FLOW_MASK"):
        loss.fitting([keys.OUTPUT_FLOW_MASK], [keys.TARGET_AGL_MASK])
    loss.fitting([keys.OUTPUT_FLOW_MASK], [keys.TARGET_FLOW_MASK])
