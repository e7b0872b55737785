"""The published architectures: every parameter, and what the filled network returns.

Needs the reference files beside the repository; without them the tests are skipped and say so.
"""

import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geopose import keys
from geopose.checkpoints.info import describe
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.construct import plain
from geopose.data.heights import read_agl_m
from geopose.inference.config import load_config
from geopose.inference.submission.command import submit
from geopose.models.build import build_model
from geopose.models.legacy import published_to_current
from geopose.training.initial_weights import apply_initial_weights
from tests.published_facts import (
    CONFIGS,
    MODELS,
    REFERENCE,
    description,
    filled,
    needs_reference,
    parameters,
    published_file,
)
from tests.published_runs import NOTHING, assert_both_commands
from tests.tiny_run import ROOT, write_split
from tests.training_run import composed

pytestmark = needs_reference
PUBLISHED = ("b6_rdtsc_unet", "b7_unet")


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
        model = build_model(MODELS[slug], load_pretrained=False)
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
        model = build_model(composed("model=b7_rdtsc_unet").model, load_pretrained=False)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    encoder = {n: shape for n, shape in found.items() if n.startswith("encoder.")}
    b7 = {n: shape for n, shape in names["b7_unet"].items() if n.startswith("encoder.")}
    assert encoder == b7
    others = {published_to_current(n) for n in names["b6_rdtsc_unet"]}
    assert set(found) - set(encoder) == {n for n in others if not n.startswith("encoder.")}
    # Coarse to fine: (640 / 4) + 224, (512 / 4) + 80, (384 / 4) + 48 channels come in.
    wide = [found[f"decoder.blocks.{i}.identity.weight"][:2] for i in range(3)]
    assert wide == [[512, 384], [384, 208], [256, 144]]
    shapes = {published_to_current(k["key"]): k["shape"] for k in parameters("b7_rdtsc_unet")}
    assert found == shapes


@pytest.mark.parametrize("slug", PUBLISHED)
def test_shipped_yaml_is_the_published_network(slug: str) -> None:
    with torch.device("meta"):
        shipped, published = (
            build_model(config, load_pretrained=False)
            for config in (plain(composed(f"model={slug}"))["model"], MODELS[slug])
        )
    # Every layer with its numbers: drop-path, epsilons, rates.
    assert str(shipped) == str(published)


def test_recipe_is_understood() -> None:
    checks = description("b6_rdtsc_unet")["fill_check"]["values"]
    shapes = {k["key"]: k for k in description("b6_rdtsc_unet")["keys"]}
    for name in list(checks)[::17]:
        value = filled(name, shapes[name]["shape"], shapes[name]["dtype"])
        found = [value.flatten()[0].item(), value.double().abs().sum().item()]
        assert found == pytest.approx(checks[name], rel=1e-5, abs=1e-7), name


@pytest.fixture(scope="module")
def b7_unet(full: Path) -> nn.Module:
    """The filled network, loaded from a published file."""
    loaded = load_model(full / "b7_unet.pth")
    assert (loaded.channel_order, loaded.downsample) == ("bgr", 1)
    return loaded.model


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
    b7_unet: nn.Module, case: str, seed: int, size: tuple[int, int], gsd: float, step: int
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


def test_a_batch_gives_what_single_images_give(b7_unet: nn.Module) -> None:
    expected = np.load(REFERENCE / "forward_b7_unet.npz")
    images = torch.cat([reference_image(256, 256), reference_image(256, 256, seed=7)])
    with torch.inference_mode():
        output = b7_unet(images, torch.tensor([[0.35], [0.35]]))
    assert_close(output[keys.OUTPUT_VFLOW_SCALE], expected["batch2/scale"], 1.0, "scale")
    assert_close(output[keys.OUTPUT_VFLOW_ANGLE], expected["batch2/angle"], 1.0, "angle")
    key = keys.OUTPUT_AGL_MASK
    maximum = expected[f"seed7/{key}/stats_mean_std_min_max_zerofrac"][3]
    assert_close(output[key][1, 0, ::8, ::8], expected[f"seed7/{key}/sub8"], maximum, key)


def test_the_pasted_configs_are_the_published_ones() -> None:
    published = json.loads((REFERENCE / "published_configs.json").read_text())
    assert published["b7_unet_fold0"] == CONFIGS["b7_unet"]
    assert published["b6_rdtsc_unet_fold9"] == CONFIGS["b6_rdtsc_unet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of 64 px."""
    return write_split(tmp_path_factory.mktemp("images") / "data", [(64, 64)])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each published network."""
    folder = tmp_path_factory.mktemp("full")
    for slug in CONFIGS:
        published_file(folder / f"{slug}.pth", slug)
    return folder


def test_the_published_networks_predict_by_both_commands(
    full: Path, data: Path, tmp_path: Path
) -> None:
    assert_both_commands(full / "b6_rdtsc_unet.pth", data, tmp_path)


@pytest.mark.parametrize("slug", ["b7_unet", "b6_rdtsc_unet"])
def test_the_published_networks_are_described_and_start_trainings(full: Path, slug: str) -> None:
    said = describe(full / f"{slug}.pth")
    assert said["parameters"] == f"{description(slug)['num_parameters']:,}"
    assert (said["slug"], said["epoch"], said["channel order"]) == (slug, "251", "bgr")
    assert said["fold"] == str(CONFIGS[slug]["dataset"]["fold"])
    assert said["metrics"] == "valid/loss 0.25, valid/metrics/mean_r2 0.9"
    cfg = composed(f"model={slug}", "model.channel_order=bgr", "model.encoder.pretrained=false")
    model = build_model(cfg.model)
    for key in NOTHING:
        start = {**NOTHING, key: str(full / f"{slug}.pth"), "model": cfg.model}
        apply_initial_weights(model, start)


def test_a_shipped_ensemble_runs_on_full_files(
    full: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of four files has all three networks; the others run in small (see ensembles)."""
    monkeypatch.setenv("GEOPOSE_CACHE", str(full))
    (path,) = (ROOT / "configs/inference").glob("fp32_0.8910_*.yaml")
    for entry in load_config(path).models:
        (slug,) = re.findall(r"_(b\d(?:_rdtsc)?_unet)_", entry.files[0].name)
        os.link(full / f"{slug}.pth", entry.files[0])
    arguments = [str(path), "--data-dir", str(data), f"submission_dir={tmp_path}"]
    arguments.append("ensemble.tta=fliplr")  # two views of eight, by networks of full size
    assert run_command(submit, arguments) == 0
    with tarfile.open(tmp_path / "submission_compressed.tar.gz") as archive:
        assert archive.getnames() == ["ABC_000_AGL.tif", "ABC_000_VFLOW.json"]
    assert read_agl_m(tmp_path / "submission/ABC_000_AGL.tif").mean() > 0.5
