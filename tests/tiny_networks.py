"""Tiny networks of every kind, and what they answer."""

import copy

import torch
from torch import Tensor, nn

from geopose.models.build import build_model
from tests.tiny_run import model_config

HEADS = "geopose.models.heads."
ENCODER = {"_target_": "geopose.models.encoders.TimmEncoder", "pretrained": False}
VARIANTS = {
    "published b6": {"decoder": {"block_type": "residual_unet", "upsample": "rdtsc"}},
    "published b7": {"agl_head": {"_target_": HEADS + "SimpleAGLHead", "embedding_size": 16}},
    "dense": {"decoder": {"block_type": "dense_unet", "upsample": "bilinear"}},
    "inverted": {"decoder": {"block_type": "ir_unet", "upsample": "bilinear"}},
    "hyper column": {"agl_head": {"_target_": HEADS + "HyperColumnAGLHead"}},
    "height only": {
        "agl_head": {"_target_": HEADS + "OnlyAGLHead"},
        "orientation_head": {"_target_": HEADS + "BasicOrientationScaleHead"},
    },
    "flow map": {"orientation_head": {"_target_": HEADS + "FlowOrientationHead"}},
    "residual encoder": {"encoder": {**ENCODER, "name": "test_resnet", "layers": [1, 2, 3]}},
    "v2 encoder": {"encoder": {**ENCODER, "name": "test_efficientnet_gn", "layers": [1, 2, 3]}},
    "transformer-like encoder": {
        "encoder": {**ENCODER, "name": "test_convnext", "layers": [0, 1, 2]},
    },
}


def network(name: str, seed: int = 0) -> nn.Module:
    """A tiny network whose BatchNorms have something to fold."""
    changes = copy.deepcopy(VARIANTS[name])
    if "decoder" in changes:
        changes["decoder"]["channels"] = [16, 32]
    config = model_config(**changes)
    torch.manual_seed(seed)
    model = build_model(config, load_pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.bias, 0.1, 0.2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def answers(model: nn.Module, *size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(*size, generator=generator)
    gsd_m = torch.linspace(0.3, 2.0, size[0])[:, None]
    with torch.inference_mode():
        return model(image, gsd_m)
