"""The published architectures: every parameter, and what the filled network returns.

Needs the reference files beside the repository; without them the tests are skipped and say so.
"""

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

from geopose import keys
from geopose.checkpoints.info import describe
from geopose.cli import run_command
from geopose.construct import plain
from geopose.data.heights import read_agl_m
from geopose.data.rgb import read_rgb
from geopose.data.vflow import read_vflow
from geopose.inference.command import submit
from geopose.models.build import build_model
from geopose.models.geopose_unet import GeoposeUNetModel
from geopose.models.legacy import published_to_current, rename_state_dict
from tests.tiny_run import run_script, write_config, write_split
from tests.training_run import composed

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"no reference files at {REFERENCE}: published models unchecked"
)
_ORIENTATION = {"_target_": "geopose.models.heads.BasicOrientationHead"}
B6_RDTSC_UNET = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "slug": "b6_rdtsc_unet",
    "encoder": {"_target_": "pytorch_toolbelt.modules.encoders.TimmB6Encoder", "pretrained": True},
    "decoder": {
        "block_type": "residual_unet",
        "upsample": "rdtsc",
        "channels": [256, 384, 512],
    },
    "agl_head": {
        "_target_": "geopose.models.heads.AGLHead",
        "num_upsample_blocks": 2,
        "dropout_rate": 0.2,
    },
    "orientation_head": _ORIENTATION,
}
B7_UNET = {
    "_target_": "geopose.models.geopose_unet.GeoposeUNetModel.from_config",
    "slug": "b7_unet",
    "encoder": {
        "_target_": "pytorch_toolbelt.modules.encoders.TimmB7Encoder",
        "pretrained": True,
        "layers": [0, 1, 2, 3, 4],
    },
    "decoder": {"block_type": "unet", "upsample": "bilinear", "channels": [192, 256, 384, 512]},
    "agl_head": {
        "_target_": "geopose.models.heads.SimpleAGLHead",
        "embedding_size": 128,
        "dropout_rate": 0.2,
    },
    "orientation_head": _ORIENTATION,
}
PUBLISHED = {"b6_rdtsc_unet": B6_RDTSC_UNET, "b7_unet": B7_UNET}
_DAMPED = re.compile(
    r"^encoder\.encoder\.blocks\.(0\.[1-9]\d*\.bn2|[1-6]\.[1-9]\d*\.bn3)\.(weight|bias)$"
)
_LAST_CONVS = {  # weight factor, constant bias
    "agl_head.height.conv3": (20.0, 6.0),
    "agl_head.magnitude.conv3": (20.0, 6.0),
    "agl_head.height.2": (0.6, 4.0),
    "agl_head.magnitude.2": (0.4, 2.0),
}


def description(slug: str) -> dict[str, Any]:
    """The reference file of one architecture."""
    return json.loads((REFERENCE / f"state_dict_{slug}.json").read_text())


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
    return {k["key"]: filled(k["key"], k["shape"], k["dtype"]) for k in description(slug)["keys"]}


def reference_image(height: int, width: int, seed: int = 20210715) -> Tensor:
    """The recipe's image, normalised already."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn((1, 3, height, width), generator=generator)
    coarse = torch.randn((1, 3, 8, 8), generator=generator)
    coarse = coarse.repeat_interleave(height // 8, dim=2).repeat_interleave(width // 8, dim=3)
    return 0.5 * fine + coarse


@pytest.mark.parametrize("slug", PUBLISHED)
def test_every_parameter_is_the_published_one(slug: str) -> None:
    with torch.device("meta"):
        model = build_model(PUBLISHED[slug], load_pretrained=False)
    published = description(slug)
    expected = {published_to_current(k["key"]): (k["shape"], k["dtype"]) for k in published["keys"]}
    assert len(expected) == published["num_keys"]
    actual = {
        name: (list(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in model.state_dict().items()
    }
    assert actual == expected
    assert sum(p.numel() for p in model.parameters()) == published["num_parameters"]
    norms = {n: m.eps for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for part, eps in published["batchnorm_eps"].items():
        of_part = {e for n, e in norms.items() if n.startswith("encoder.") == (part == "encoder")}
        assert of_part == {eps}, part


def test_b7_rdtsc_unet_is_the_b7_encoder_under_the_b6_decoder_and_heads() -> None:
    names = {slug: {k["key"]: k["shape"] for k in description(slug)["keys"]} for slug in PUBLISHED}
    with torch.device("meta"):
        model = build_model(
            {**B6_RDTSC_UNET, "encoder": {**B7_UNET["encoder"], "layers": [1, 2, 3, 4]}},
            load_pretrained=False,
        )
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    encoder = {n: shape for n, shape in found.items() if n.startswith("encoder.")}
    b7 = {n: shape for n, shape in names["b7_unet"].items() if n.startswith("encoder.")}
    assert encoder == b7
    others = {published_to_current(n) for n in names["b6_rdtsc_unet"]}
    assert set(found) - set(encoder) == {n for n in others if not n.startswith("encoder.")}
    # Coarse to fine: (640 / 4) + 224, (512 / 4) + 80, (384 / 4) + 48 channels come in.
    wide = [found[f"decoder.blocks.{i}.identity.weight"][:2] for i in range(3)]
    assert wide == [[512, 384], [384, 208], [256, 144]]


@pytest.mark.parametrize("slug", PUBLISHED)
def test_shipped_yaml_is_the_published_network(slug: str) -> None:
    with torch.device("meta"):
        shipped, published = (
            build_model(config, load_pretrained=False)
            for config in (plain(composed(f"model={slug}"))["model"], PUBLISHED[slug])
        )
    assert str(shipped) == str(
        published
    )  # every layer with its numbers: drop-path, epsilons, rates


def test_recipe_is_understood() -> None:
    checks = description("b6_rdtsc_unet")["fill_check"]["values"]
    shapes = {k["key"]: k for k in description("b6_rdtsc_unet")["keys"]}
    for name in list(checks)[::17]:
        value = filled(name, shapes[name]["shape"], shapes[name]["dtype"])
        found = [value.flatten()[0].item(), value.double().abs().sum().item()]
        assert found == pytest.approx(checks[name], rel=1e-5, abs=1e-7), name


@pytest.fixture(scope="module")
def b7_unet() -> GeoposeUNetModel:
    """The filled network, loaded strictly from published names."""
    model = build_model(B7_UNET, load_pretrained=False).eval()
    model.load_state_dict(rename_state_dict(filled_state("b7_unet")), strict=True)
    return model


def assert_close(found: Tensor, expected: np.ndarray, scale: float, what: str) -> None:
    """Within 1e-4 of the quantity's size (its largest value: maps go through zero)."""
    error = np.abs(found.numpy().astype(np.float64) - expected).max()
    assert error <= 1e-4 * scale, f"{what}: {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize(
    ("case", "seed", "size", "gsd", "step"),
    [
        ("main", 20210715, (256, 256), 0.35, 4),
        ("gsd050", 20210715, (256, 256), 0.50, 8),
        ("rect192x320", 20210715, (192, 320), 0.35, 8),
    ],
)
def test_filled_network_gives_the_reference(
    b7_unet: GeoposeUNetModel, case: str, seed: int, size: tuple[int, int], gsd: float, step: int
) -> None:
    expected = np.load(REFERENCE / "forward_b7_unet.npz")
    with torch.inference_mode():
        output = b7_unet(reference_image(*size, seed), torch.tensor([[gsd]]))
    for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_MAGNITUDE_MASK):
        assert output[key].shape == (1, 1, *size)
        maximum = expected[f"{case}/{key}/stats_mean_std_min_max_zerofrac"][3]
        found = output[key][0, 0, ::step, ::step]
        assert_close(found, expected[f"{case}/{key}/sub{step}"], maximum, key)
        if case == "main":
            assert_close(output[key][0, 0, 0], expected[f"main/{key}/edge_top"], maximum, key)
            assert_close(output[key][0, 0, :, -1], expected[f"main/{key}/edge_right"], maximum, key)
    for key in (keys.OUTPUT_VFLOW_SCALE, keys.OUTPUT_VFLOW_DIRECTION, keys.OUTPUT_VFLOW_ANGLE):
        assert_close(output[key], expected[f"{case}/{key}"], 1.0, key)


def test_a_batch_gives_what_single_images_give(b7_unet: GeoposeUNetModel) -> None:
    expected = np.load(REFERENCE / "forward_b7_unet.npz")
    images = torch.cat([reference_image(256, 256), reference_image(256, 256, seed=7)])
    with torch.inference_mode():
        output = b7_unet(images, torch.tensor([[0.35], [0.35]]))
    assert_close(output[keys.OUTPUT_VFLOW_SCALE], expected["batch2/scale"], 1.0, "scale")
    assert_close(output[keys.OUTPUT_VFLOW_ANGLE], expected["batch2/angle"], 1.0, "angle")
    key = keys.OUTPUT_AGL_MASK
    maximum = expected[f"seed7/{key}/stats_mean_std_min_max_zerofrac"][3]
    assert_close(output[key][1, 0, ::8, ::8], expected[f"seed7/{key}/sub8"], maximum, key)


def published_file(path: Path, slug: str) -> Path:
    """A file as the second place's trainer left it, whole, with the filled weights.

    Old parameter names, a full training config with the old repository's paths as data, nothing on
    channels or versions, optimizer and scheduler state, counters and numpy numbers among metrics.
    """
    weights = filled_state(slug)
    names = [name for name, value in weights.items() if value.is_floating_point()]
    metrics = {"loss": np.float32(0.25), "metrics/mean_r2": np.float64(0.9)}
    config = {
        "model": {**PUBLISHED[slug], "_recursive_": False},
        "train": {"epochs": 300, "downsample": None, "augmentations": "light"},
        "loss": {
            "aggregation": "sum",
            "losses": [
                {
                    "loss": {
                        "_target_": "geopose.losses.HuberLossWithIgnore",
                        "ignore_value": 65535,
                    },
                    "prefix": "agl",
                    "target_key": keys.TARGET_AGL_MASK,
                    "output_key": keys.OUTPUT_AGL_MASK,
                    "weight": 1.0,
                }
            ],
        },
        "optimizer": {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-4}},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
        "dataset": {"fold": 9, "root_dir": "${oc.env:DRIVENDATA_OVERHEAD_GEOPOSE}"},
    }
    torch.save(
        {
            "model_state_dict": weights,
            "criterion_state_dict": OrderedDict(),
            "optimizer_state_dict": {
                "state": {n: {"step": 7, "exp_avg": torch.zeros(10)} for n in range(len(names))},
                "param_groups": [{"lr": 1e-4, "params": list(range(len(names)))}],
            },
            "scheduler_state_dict": {"best": np.float64(0.9), "mode_worse": -np.inf},
            "stage_epoch_step": 251,
            "epoch_metrics": defaultdict(dict, {"valid": OrderedDict(metrics)}),
            "loader_metrics": OrderedDict(metrics),
            "valid_loader": "valid",
            "checkpoint_data": {"config": config},
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def published_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smaller published network as a file, run by both commands over two images."""
    folder = tmp_path_factory.mktemp("published")
    data = write_split(folder / "data", [(64, 96), (70, 50)])
    config = write_config(folder / "c.yaml", [published_file(folder / "b6.pth", "b6_rdtsc_unet")])
    arguments = [str(config), "--data-dir", str(data)]
    assert run_command(submit, [*arguments, f"submission_dir={folder}/one"]) == 0
    done = run_script(
        "submit_ddp.py", *arguments, "--nproc", 2, f"submission_dir={folder}/two"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_published_files_run_by_both_commands(published_runs: Path) -> None:
    archives = [
        (published_runs / name / "submission_compressed.tar.gz").read_bytes()
        for name in ("one", "two")
    ]
    assert archives[0] == archives[1]
    rgb = read_rgb(published_runs / "data/test/ABC_000_RGB.png")
    planes = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    planes = (planes - mean[:, None, None]) / std[:, None, None]
    model = build_model(B6_RDTSC_UNET, load_pretrained=False).eval()
    model.load_state_dict(rename_state_dict(filled_state("b6_rdtsc_unet")), strict=True)
    with torch.inference_mode():
        output = model(planes, torch.tensor([[0.3]]))
    folder = published_runs / "one/submission"
    agl_m = read_agl_m(folder / "ABC_000_AGL.tif")
    np.testing.assert_allclose(agl_m, output[keys.OUTPUT_AGL_MASK][0, 0].numpy(), atol=0.0051)
    scale = read_vflow(folder / "ABC_000_VFLOW.json")[0]
    assert scale == pytest.approx(output[keys.OUTPUT_VFLOW_SCALE].item(), rel=1e-4)


def test_published_files_are_described(published_runs: Path) -> None:
    said = describe(published_runs / "b6.pth")
    assert said["parameters"] == f"{description('b6_rdtsc_unet')['num_parameters']:,}"
    assert said["slug"] == "b6_rdtsc_unet"
    assert (said["fold"], said["epoch"], said["channel order"]) == ("9", "251", "bgr")
    assert said["metrics"] == "valid/loss 0.25, valid/metrics/mean_r2 0.9"
