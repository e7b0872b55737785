"""A model small enough to run whole commands on, and test splits to run it on."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.data.rgb import write_j2k, write_png
from geopose.models.build import build_model
from tests.programs import ENVIRONMENT, ROOT, run_forked_program

SIZES = ((97, 130), (97, 130), (64, 64), (40, 71), (97, 130))


def model_config(**changes: Any) -> dict[str, Any]:
    """The `model` node of a training config: a U-Net of 0.1 M parameters."""
    heads = "geopose.models.heads"
    return {
        "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
        "slug": "tiny",
        "channel_order": "rgb",
        "encoder": {
            "_target_": "geopose.models.encoders.TimmEncoder",
            "name": "test_efficientnet",
            "pretrained": True,  # must never be looked for when weights follow
            "layers": [1, 2, 3],
        },
        "decoder": {"block_type": "unet", "upsample": "bilinear", "channels": [8, 12]},
        "agl_head": {"_target_": f"{heads}.AGLHead", "embedding_size": 8},
        "orientation_head": {"_target_": f"{heads}.BasicOrientationHead"},
        **changes,
    }


def tiny_payload(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A checkpoint's content with random weights and heights of a few metres."""
    return payload_of(model_config(**changes), seed)


def payload_of(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The same for any `model` node of a config."""
    torch.manual_seed(seed)
    model = build_model(config, load_pretrained=False)
    for name, parameter in model.named_parameters():
        if name.startswith("agl_head") and name.endswith("bias"):
            parameter.data += 0.5  # well away from a ReLU that is never on
        elif name.startswith("agl_head") and parameter.ndim == 4:
            parameter.data *= 3.0  # heights that differ from pixel to pixel
    return {
        "model_state_dict": model.state_dict(),
        "checkpoint_data": {"config": {"model": config, "train": {"downsample": 1}}, "epoch": 3},
        "channel_order": config.get("channel_order", "bgr"),
    }


def write_checkpoint(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny checkpoint file as training writes it."""
    save_checkpoint(path, tiny_payload(seed, **changes))
    return path


def write_split(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """A data directory with a test split of random blobs; odd rows are .j2k without a PNG."""
    (folder / "test").mkdir(parents=True)
    generator = np.random.default_rng(5)
    metadata, rows = ["id,city,gsd"], ["rgb,id"]
    for number, (height, width) in enumerate(sizes):
        name = f"ABC_{number:03d}_RGB"
        rgb = generator.integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        rgb = np.kron(rgb, np.ones((8, 8, 1), np.uint8))[:height, :width]
        if number % 2:
            write_j2k(folder / "test" / f"{name}.j2k", rgb, lossless=True)
        else:
            (folder / "test" / f"{name}.j2k").write_bytes(b"never read, the PNG is newer")
            write_png(folder / "test" / f"{name}.png", rgb)
        metadata.append(f"ABC_{number:03d},ABC,{0.3 + 0.1 * number:.2f}")
        rows.append(f"{name}.j2k,ABC_{number:03d}")
    (folder / "metadata.csv").write_text("\n".join(metadata) + "\n")
    (folder / "geopose_test.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_config(path: Path, models: Sequence[Any], **inference: Any) -> Path:
    """An inference config without TTA that writes to `out` beside it. (JSON is YAML.)"""
    content = {
        "ensemble": {"tta": None, "models": list(models)},
        "inference": {"batch_size": 1, "num_workers": 0, **inference},
        "submission_dir": str(path.parent / "out"),
    }
    path.write_text(json.dumps(content, default=str))
    return path


def run_script(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the project in a process of its own: a file, `-m` and a module, or `-c`."""
    return run_forked_program([str(argument) for argument in arguments], cwd, env)


def run_interpreter(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """Runs it by an interpreter of its own, which takes seconds: where that is what is tested."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
