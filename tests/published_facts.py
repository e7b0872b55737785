"""What published checkpoint files hold, pasted: their configs, and the recipe of their weights.

Nothing here is taken from configs/, from the code or from its defaults, so that a change there
cannot change what these files say.
"""

import copy
import json
import re
import zlib
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"no reference files at {REFERENCE}: published models unchecked"
)

B7_UNET = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "config": {
        "slug": "b7_unet",
        "activation": "silu",
        "encoder": {
            "_target_": "pytorch_toolbelt.modules.encoders.TimmB7Encoder",
            "pretrained": True,
            "activation": "silu",
            "layers": [0, 1, 2, 3, 4],
        },
        "decoder": {
            "block_type": "unet",
            "activation": "silu",
            "channels": [192, 256, 384, 512],
        },
        "agl_head": {
            "_target_": "geopose.models.heads.SimpleAGLHead",
            "embedding_size": 128,
            "dropout_rate": 0.2,
            "activation": "silu",
        },
        "orientation_head": {
            "_target_": "geopose.models.heads.BasicOrientationHead",
            "dropout_rate": 0.2,
            "activation": "silu",
        },
    },
}
B6_RDTSC_UNET = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "config": {
        "slug": "b6_rdtsc_unet",
        "activation": "silu",
        "encoder": {
            "_target_": "pytorch_toolbelt.modules.encoders.TimmB6Encoder",
            "pretrained": True,
            "activation": "silu",
            "layers": [1, 2, 3, 4],
        },
        "decoder": {
            "block_type": "residual_unet",
            "upsample": "rdtsc",
            "activation": "silu",
            "channels": [256, 384, 512],
        },
        "agl_head": {
            "_target_": "geopose.models.heads.AGLHead",
            "num_upsample_blocks": 2,
            "dropout_rate": 0.0,
            "activation": "silu",
        },
        "orientation_head": {
            "_target_": "geopose.models.heads.BasicOrientationHead",
            "dropout_rate": 0.2,
            "activation": "silu",
        },
    },
}
# Its YAML was never published; only that it is the encoder of the one and the rest of the other.
B7_RDTSC_UNET = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "config": {
        **B6_RDTSC_UNET["config"],  # type: ignore[dict-item]
        "slug": "b7_rdtsc_unet",
        "notes": {"never": "seen here"},
        "encoder": {
            "_target_": "pytorch_toolbelt.modules.encoders.TimmB7Encoder",
            "pretrained": True,
            "activation": "silu",
            "layers": [1, 2, 3, 4],
        },
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "b7_unet": B7_UNET, "b6_rdtsc_unet": B6_RDTSC_UNET, "b7_rdtsc_unet": B7_RDTSC_UNET,
}  # fmt: skip


def _loss(prefix: str, output: str, target: str, **loss: Any) -> dict[str, Any]:
    return {
        "loss": loss,
        "prefix": prefix,
        "target_key": target,
        "output_key": output,
        "weight": 1.0,
    }


_HUBER = {"_target_": "geopose.losses.HuberLossWithIgnore", "ignore_value": 65535}
_HEIGHT = ("OUTPUT_AGL_MASK", "TARGET_AGL_MASK")
_MAGNITUDE = ("OUTPUT_MAGNITUDE_MASK", "TARGET_MAGNITUDE_MASK")
_DIRECTION = ("OUTPUT_VFLOW_DIRECTION", "TARGET_VFLOW_DIRECTION")
_BOTH: dict[str, Any] = {  # what the two trainings had in common
    "loss": {
        "aggregation": "sum",
        "losses": [
            _loss("agl_huber", *_HEIGHT, **_HUBER, delta=5),
            _loss("mag_huber", *_MAGNITUDE, **_HUBER, delta=10),
            _loss("angle_cos", *_DIRECTION, _target_="geopose.losses.CosineSimilarityLoss"),
            _loss("angle_mse", *_DIRECTION, _target_="torch.nn.MSELoss"),
        ],
    },
    "sampling": {"crop_mode": "random_crop"},
    "runner": {
        "main_metric": "metrics/mean_r2",
        "main_metric_minimize": False,
        "input_key": ["INPUT_IMAGE_KEY", "INPUT_GROUND_SAMPLE_DISTANCE"],
        "output_key": None,
    },
    "channels_last": False, "local_rank": "0", "world_size": "2", "experiment": None,
    "deterministic": False, "detect_anomaly": False, "find_unused": False, "transfer": None,
    "transfer_encoder_decoder": None, "checkpoint": None,
}  # fmt: skip
_OPTIMIZER = {
    "name": "AdamW", "accumulation": 1,
    "params": {"lr": 0.0001, "eps": 1e-06, "weight_decay": 1e-06},
}  # fmt: skip
_DATASET = {"slug": "default", "data_dir": "/data/geopose", "fold_split": "region_stratified"}
_TRAIN = {
    "show": False, "fast": False, "augmentations": "light", "copy_paste": False,
    "train_image_size": [768, 768], "valid_image_size": [2048, 2048], "downsample": 1,
    "mosaic": False, "mixup": False, "mixup_a": 0.5, "mixup_p": 0.5,
}  # fmt: skip


def _loaders(batch_size: int, num_workers: int) -> dict[str, Any]:
    return {
        "train": {"batch_size": batch_size, "num_workers": num_workers},
        "valid": {"batch_size": 1, "num_workers": 4},
    }


B7_UNET_FOLD0 = {
    **_BOTH,
    "model": B7_UNET,
    "optimizer": {**_OPTIMIZER, "fp16": True, "wd_on_bias": False},
    "scheduler": {"scheduler_name": "cos", "min_learning_rate": 1e-05},
    "dataset": {**_DATASET, "fold": 0},
    "train": {**_TRAIN, "epochs": 250, "early_stopping": 0, "loaders": _loaders(4, 10)},
    "batch_size": 4,
    "seed": 555,
}
B6_RDTSC_UNET_FOLD9 = {
    **_BOTH,
    "model": B6_RDTSC_UNET,
    "optimizer": {**_OPTIMIZER, "fp16": False, "wd_on_bias": True},
    "scheduler": {
        "scheduler_name": "plateau", "min_lr": 6e-05, "mode": "max", "factor": 0.5, "patience": 20,
    },
    "dataset": {**_DATASET, "fold": 9},
    "train": {**_TRAIN, "epochs": 300, "early_stopping": 50, "loaders": _loaders(3, 8)},
    "batch_size": 3,
    "seed": 777,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "b7_unet": B7_UNET_FOLD0,
    "b6_rdtsc_unet": B6_RDTSC_UNET_FOLD9,
    "b7_rdtsc_unet": {**B6_RDTSC_UNET_FOLD9, "model": B7_RDTSC_UNET},
}

_DAMPED = re.compile(
    r"^encoder\.encoder\.blocks\.(0\.[1-9]\d*\.bn2|[1-6]\.[1-9]\d*\.bn3)\.(weight|bias)$"
)
_LAST_CONVS = {  # weight factor, constant bias
    "agl_head.height.conv3": (20.0, 6.0),
    "agl_head.magnitude.conv3": (20.0, 6.0),
    "agl_head.height.2": (0.6, 4.0),
    "agl_head.magnitude.2": (0.4, 2.0),
}
# Channels of the B6 encoder's maps in layers that read them, and those of the B7 in their place.
_WIDER = {
    "decoder.upsamples.0.": {576: 640, 144: 160},
    "decoder.blocks.0.": {344: 384},
    "decoder.blocks.1.": {200: 208},
    "decoder.blocks.2.": {136: 144},
    "orientation_head.": {576: 640},
}


def description(slug: str) -> dict[str, Any]:
    """The reference file of one of the two published architectures."""
    return json.loads((REFERENCE / f"state_dict_{slug}.json").read_text())


def parameters(slug: str) -> list[dict[str, Any]]:
    """`key`, `shape` and `dtype` of every parameter, under the published names."""
    if slug != "b7_rdtsc_unet":
        return description(slug)["keys"]
    encoder = [k for k in description("b7_unet")["keys"] if k["key"].startswith("encoder.")]
    others = [k for k in description("b6_rdtsc_unet")["keys"] if k["key"][:8] != "encoder."]
    for item in others:
        for place, wider in _WIDER.items():
            if item["key"].startswith(place):
                item["shape"] = [wider.get(n, n) for n in item["shape"]]
    return encoder + others


def filled(name: str, shape: list[int], dtype: str) -> Tensor:
    """The value that the reference's recipe gives a parameter of this name."""
    if dtype != "float32":
        return torch.ones(shape, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    stem, kind = name.rsplit(".", 1)
    if kind == "running_var":
        return 1.0 + 0.1 * torch.rand(shape, generator=generator)
    value = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        gain = 2.6 if name.startswith("encoder.") else 2.0
        value = value * np.sqrt(gain / np.prod(shape[1:])).item()
        return value * _LAST_CONVS.get(stem, (1.0, 0.0))[0]
    if stem in _LAST_CONVS:
        return torch.full(shape, _LAST_CONVS[stem][1])
    if kind == "weight":
        value = 1.0 + 0.05 * value
    else:
        value = {"bias": 0.02, "running_mean": 0.05}[kind] * value
    return value * 0.2 if _DAMPED.match(name) else value


def filled_state(slug: str) -> dict[str, Tensor]:
    """A published state dict, filled by the recipe, under the published names."""
    return {k["key"]: filled(k["key"], k["shape"], k["dtype"]) for k in parameters(slug)}


def published_payload(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """All that the second place's trainer left in a file: nothing on channels or versions, but
    optimizer and scheduler state, counters, and numpy numbers among metrics.
    """
    count = sum(value.is_floating_point() for value in weights.values())
    metrics = {"loss": np.float32(0.25), "metrics/mean_r2": np.float64(0.9)}
    return {
        "model_state_dict": OrderedDict(weights),
        "criterion_state_dict": OrderedDict(),
        "optimizer_state_dict": {
            "state": {n: {"step": 7, "exp_avg": torch.zeros(10)} for n in range(count)},
            "param_groups": [{"lr": 1e-4, "params": list(range(count))}],
        },
        "scheduler_state_dict": {"best": np.float64(0.9), "mode_worse": -np.inf},
        "stage_epoch_step": 251,
        "epoch_metrics": defaultdict(dict, {"valid": OrderedDict(metrics)}),
        "loader_metrics": OrderedDict(metrics),
        "valid_loader": "valid",
        "checkpoint_data": {"config": copy.deepcopy(config)},
    }


def published_file(path: Path, slug: str) -> Path:
    """A whole file of one of the published networks."""
    torch.save(published_payload(CONFIGS[slug], filled_state(slug)), path)
    return path
