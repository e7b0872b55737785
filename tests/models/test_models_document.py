"""docs/models.md: its examples build; its figures and pictures are those of today's networks."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from benchmarks.models import DOCUMENT, HEAD, NAMES, count, row
from geopose.models.blocks import BLOCK_TYPES, UPSAMPLES
from geopose.models.build import build_model
from geopose.models.heads import AGL_HEADS, ORIENTATION_HEADS
from scripts.draw_networks import IMAGES, draw
from tests.training_run import CONFIGS

TEXT = DOCUMENT.read_text()
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: " ".join(example))
def test_examples_build(example: dict) -> None:
    with torch.device("meta"):
        model = build_model({**EXAMPLES[0], **example}, load_pretrained=False)
    assert sum(weights.numel() for weights in model.parameters()) > 0


def test_every_option_is_explained() -> None:
    heads = [name.rpartition(".")[2] for name in (*AGL_HEADS, *ORIENTATION_HEADS)]
    for name in (*BLOCK_TYPES, *heads):
        assert f"| `{name}` |" in TEXT
    assert {name for name in UPSAMPLES if f"| `{name}` |" in TEXT} == {
        "bilinear",
        "nearest",
        "rdtsc",
    }


def test_every_shipped_network_is_counted() -> None:
    assert set(NAMES) == {path.stem for path in (CONFIGS / "model").glob("*.yaml")}
    rows = TEXT.partition(HEAD)[2].partition("\n\n")[0].splitlines()
    assert [line.split("`")[1] for line in rows] == list(NAMES)


@pytest.mark.parametrize("name", ["mobilenet_unet", "sample_unet"])
def test_figures_are_those_of_todays_networks(name: str) -> None:
    assert row(name, f"model={name}") in TEXT.splitlines()


def test_counting_by_hand() -> None:
    """Two convolutions: the wide map between them and the result are alive at the same time."""
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(inplace=True), nn.Conv2d(8, 2, 1)
        )
        cost = count(model, torch.zeros(1, 3, 16, 32))
    pixels = 16 * 32
    assert cost.parameters == 3 * 8 * 9 + 8 + 8 * 2 + 2
    assert cost.flop == 2 * pixels * (3 * 8 * 9 + 8 * 2)
    assert cost.inference_bytes == 4 * pixels * (8 + 2)
    assert cost.training_bytes > cost.inference_bytes


@pytest.mark.parametrize("name", ["b7_unet", "b6_rdtsc_unet"])
def test_pictures_show_todays_networks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _words((IMAGES / f"network_{name}.svg").read_text())
    monkeypatch.setattr("scripts.draw_networks.IMAGES", tmp_path)
    drawn = draw(name)
    assert f"images/{drawn.name}" in TEXT
    assert _words(drawn.read_text()) == shown
    assert {
        "b7_unet": "192 \N{MULTIPLICATION SIGN} 1024 \N{MULTIPLICATION SIGN} 1024",
        "b6_rdtsc_unet": "256 \N{MULTIPLICATION SIGN} 512 \N{MULTIPLICATION SIGN} 512",
    }[name] in shown


def _words(svg: str) -> list[str]:
    """The texts of a picture, which matplotlib repeats as comments beside their outlines."""
    return re.findall(r"<!-- (.*?) -->", svg)
