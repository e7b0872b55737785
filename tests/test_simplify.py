"""The simplified network answers as the trained one does; its layers, one by one and together."""

import copy
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopose import keys
from geopose.inference.engines.backends import Compiled, prepare
from geopose.inference.engines.precision import resolve_precision, set_precision
from geopose.models import fused, strips, winograd
from geopose.models.blocks import GsdConv, ResidualDeconvolution, conv3x3
from geopose.models.build import build_model
from geopose.models.simplify import simplify
from tests.tiny_run import ROOT, model_config

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


def answers(model: nn.Module, *size: int, kind: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(*size, generator=generator).to(kind, memory_format=torch.channels_last)
    gsd_m = torch.linspace(0.3, 2.0, size[0])[:, None]
    with torch.inference_mode():
        return model(image, gsd_m)


@pytest.mark.parametrize("size", [(1, 3, 70, 131), (3, 3, 64, 96)], ids=["single", "batch"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_simplified_network_answers_the_same(name, size, caplog):
    model = network(name)
    simple = simplify(model).to(memory_format=torch.channels_last)
    assert simple is not model, caplog.text
    expected, found = answers(model, *size), answers(simple, *size)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        atol = 1e-4 * float(value.abs().max())
        torch.testing.assert_close(found[key], value, atol=atol, rtol=0, msg=key)


@pytest.mark.parametrize("name", ["published b6", "published b7"])
def test_nothing_is_left_to_normalise_in_published_networks(name):
    kinds = {type(module) for module in simplify(network(name)).modules()}
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    assert "InvertedResidual" not in {kind.__name__ for kind in kinds}
    assert {fused.FusedMobileBlock, fused.FusedGsdConv, fused.LastConv} <= kinds
    assert {strips.StripDecoder, strips.StripHead} <= kinds


def test_a_network_that_would_answer_differently_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(
        "geopose.models.fused.folded",
        lambda conv, norm: (conv.weight * 2, torch.zeros(len(conv.weight))),
    )
    model = network("published b6")
    with caplog.at_level(logging.WARNING):
        assert simplify(model) is model
    assert "cannot be simplified" in caplog.text


def test_a_network_that_fails_while_it_is_simplified_is_left_alone(monkeypatch, caplog):
    def refuse(_: nn.Module) -> None:
        raise KeyError("a layer\nunheard of")

    monkeypatch.setattr("geopose.models.simplify._replace_blocks", refuse)
    model = network("published b6")
    assert simplify(model) is model
    assert "cannot be simplified (KeyError: 'a layer" in caplog.text


class Doubling(nn.Conv2d):
    """A convolution that does something else with its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice what a convolution gives."""
        return 2 * super().forward(x)


def test_convolutions_of_other_kinds_stay_as_they_are():
    model = Branching().eval()
    model.conv2 = Doubling(4, 4, 3, padding=1)
    simple = simplify(model)
    assert isinstance(simple.conv2, Doubling)
    assert isinstance(simple.norm2, nn.BatchNorm2d)
    key = keys.OUTPUT_AGL_MASK
    torch.testing.assert_close(answers(simple, 1, 3, 9, 8)[key], answers(model, 1, 3, 9, 8)[key])


class Branching(nn.Module):
    """A convolution whose output is used before and after BatchNorm; an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(3, 4), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = conv3x3(4, 4), nn.BatchNorm2d(4)
        self.act = nn.ReLU()

    def forward(self, image: Tensor, gsd_m: Tensor) -> dict[str, Tensor]:
        y = self.conv1(image)
        z = self.norm2(self.conv2(self.norm1(y)))
        z += y
        return {keys.OUTPUT_AGL_MASK: self.act(z)}


def test_activations_behind_an_addition_in_place_stay_behind_it():
    torch.manual_seed(0)
    model = Branching().eval()
    model.norm2.running_var.fill_(0.3)
    simple = simplify(model)
    key = keys.OUTPUT_AGL_MASK
    torch.testing.assert_close(answers(simple, 1, 3, 9, 8)[key], answers(model, 1, 3, 9, 8)[key])
    assert isinstance(simple.act, nn.ReLU)


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1), (2, 2)])
def test_gsd_without_a_plane_is_gsd_as_a_plane(size):
    torch.manual_seed(0)
    conv = GsdConv(6, 5)
    x, gsd_m = torch.randn(3, 6, *size), torch.tensor([[0.3], [1.0], [2.5]])
    plane = gsd_m[:, :, None, None].expand(3, 1, *size)
    expected = F.conv2d(torch.cat([x, plane], 1), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x, gsd_m), expected, atol=1e-5, rtol=0)
    simple = fused.FusedGsdConv(conv, nn.SiLU())
    for item in range(3):
        alone = simple(x[item : item + 1], gsd_m[item : item + 1])
        torch.testing.assert_close(alone, F.silu(expected[item : item + 1]), atol=1e-5, rtol=0)


def test_gradients_of_gsd_without_a_plane():
    conv = GsdConv(2, 3).double()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    gsd_m = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(conv, {"weight": w, "bias": conv.bias}, (x, gsd_m)),
        (x, conv.weight),
    )


def test_the_mean_of_four_channels():
    block = ResidualDeconvolution(8)
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    x = torch.arange(8.0).reshape(1, 8, 1, 1).expand(1, 8, 3, 3)
    torch.testing.assert_close(block(x)[0, :, 0, 0], torch.tensor([1.5, 5.5]))


@pytest.mark.parametrize("height", [16, 33, 66])
@pytest.mark.parametrize("width", [128, 131, 260])
def test_winograd_convolutions(height, width, monkeypatch):
    monkeypatch.setattr(winograd, "_BLOCK_COLUMNS", 20)
    torch.manual_seed(0)
    x = torch.randn(1, 48, height, width).to(memory_format=torch.channels_last)
    conv = conv3x3(48, 100)
    assert winograd.pays(x, conv.weight)
    expected = F.silu(F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1))
    layer = fused.FusedConv(conv, None, nn.SiLU())
    with torch.inference_mode():
        found = layer(x)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last) == (width % winograd.TILE == 0)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_strips_join_without_a_seam(name, count, monkeypatch):
    """Strips of 7 rows, so that every map larger than that is put together from many."""
    model = network(name)
    simple = simplify(model).to(memory_format=torch.channels_last)
    monkeypatch.setattr(strips, "_PIXELS_ON_CPU", 1)
    monkeypatch.setattr(strips, "_LEAST_STRIP", 7)
    expected, found = answers(model, count, 3, 160, 96), answers(simple, count, 3, 160, 96)
    for key, value in expected.items():
        atol = 1e-4 * float(value.abs().max())
        torch.testing.assert_close(found[key], value, atol=atol, rtol=0, msg=key)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_enlarged_rows_of_a_plane_are_the_plane(kind):
    """In 16 bits exactly: what the shares of two rows lose to rounding, rounding gives back."""
    x = torch.full((1, 2, 37, 4), 1.9921875, dtype=kind).to(memory_format=torch.channels_last)
    found = strips.BilinearRows().rows(x, (74, 8), 5, 61)
    expected = torch.full((1, 2, 56, 8), 1.9921875, dtype=kind)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mixed", [True, False])
def test_rows_of_a_residual_deconvolution(mixed):
    torch.manual_seed(0)
    mix, up = nn.Conv2d(8, 8, 1), ResidualDeconvolution(8)
    x = torch.randn(2, 8, 9, 5)
    expected = up(mix(x) if mixed else x)
    rows = strips.DeconvolutionRows(up, fused.FusedConv(mix) if mixed else None)
    for start, end in ((0, 18), (0, 7), (4, 12), (5, 6), (11, 18), (16, 18)):
        found = rows.rows(x, (18, 10), start, end)
        torch.testing.assert_close(found, expected[:, :, start:end], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_reduced_precision_keeps_the_digits_of_heights(name):
    """Rounded to the 8 bits of bfloat16, heights near 100 m would come in steps of half a metre."""
    simple = simplify(network(name))
    expected = answers(simple, 1, 3, 64, 64)
    found = answers(set_precision(simple, "bf16"), 1, 3, 64, 64, kind=torch.bfloat16)
    agl_m = found[keys.OUTPUT_AGL_MASK]
    assert agl_m.dtype == torch.float32
    positive = agl_m[agl_m > 0]
    assert (positive != positive.bfloat16().float()).float().mean() > 0.9
    for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_VFLOW_SCALE):
        atol = 0.05 * float(expected[key].abs().max()) + 1e-3
        torch.testing.assert_close(found[key], expected[key], atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["published b6", "published b7", "hyper column"])
def test_what_decides_about_digits_keeps_its_weights_in_16_bits(name):
    simple = simplify(network(name))
    kept = {
        key: value.clone()
        for key, value in simple.state_dict().items()
        if key.startswith("orientation_head.") or (key.startswith("agl_head.") and ".last." in key)
    }
    if not isinstance(simple.agl_head, strips.StripHead):
        kept.update({k: v for k, v in simple.state_dict().items() if k.startswith("agl_head.")})
    assert any(key.startswith("agl_head.") for key in kept)
    changed = set_precision(copy.deepcopy(simple), "bf16").state_dict()
    changed = {key.replace("_head.head.", "_head."): value for key, value in changed.items()}
    for key, value in kept.items():
        assert changed[key].dtype == value.dtype, key
        assert torch.equal(changed[key], value), key
    assert any(value.dtype == torch.bfloat16 for value in changed.values())


def test_precision_is_what_the_device_can_do(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [resolve_precision(p, cpu) for p in ("auto", "tf32", "fp16")] == ["fp32"] * 3
    for native in (True, False):
        monkeypatch.setattr("geopose.inference.engines.precision.has_native_bf16", lambda _: native)  # noqa: B023
        assert resolve_precision("bf16", cpu) == ("bf16" if native else "fp32")
        assert resolve_precision("bf16", gpu) == ("bf16" if native else "tf32")
    assert [resolve_precision(p, gpu) for p in ("auto", "fp32", "fp16")] == ["tf32", "fp32", "fp16"]


@pytest.mark.parametrize("message", ["no compiler\nfound", ""])
def test_what_cannot_be_compiled_runs_as_it_is(message, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", lambda model, **_: refuse)
    model = network("published b6")
    prepared = prepare(model, "compile", "fp32")
    assert isinstance(prepared, Compiled)
    with caplog.at_level(logging.WARNING):
        found = [answers(prepared, 1, 3, 64, 64) for _ in range(2)]
    assert caplog.text.count("torch.compile failed") == 1
    assert f"without it: RuntimeError: {' '.join(message.split())}" in caplog.text
    expected = answers(model, 1, 3, 64, 64)[keys.OUTPUT_AGL_MASK]
    torch.testing.assert_close(found[1][keys.OUTPUT_AGL_MASK], expected, atol=1e-3, rtol=0)


FAULTS = """
import resource, torch
from geopose.system.memory import keep_freed_memory
if keep_freed_memory():
    def faults(count):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(count)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults(700_000_000), faults(650_000_000))  # more than 2 GB, a limit of trimming
"""


def said_with_glibc(code: str) -> str:
    """What a program prints that prints nothing where the C library is another one."""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    if not output:
        pytest.skip("the C library is not glibc: there is nothing to set")
    return output


LARGE_PAGES = """
import resource
from geopose.system.memory import keep_freed_memory
if keep_freed_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(500_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_comes_in_large_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("this system has no large pages, or nothing else")
    output = said_with_glibc(LARGE_PAGES)
    assert int(output) < 500_000_000 / 4096 / 10


LIMITED = """
import resource
from pathlib import Path
from geopose.system.memory import keep_freed_memory
half = resource.getpagesize() * __import__("os").sysconf("SC_PHYS_PAGES") // 2
resource.setrlimit(resource.RLIMIT_AS, (4 * half, resource.RLIM_INFINITY))
used = lambda: int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = used()
if keep_freed_memory():
    print(used() - before < half // 2)
"""


def test_no_memory_is_reserved_where_addresses_are_counted():
    output = said_with_glibc(LIMITED)
    assert output.strip() == "True"


def test_freed_memory_is_used_again_without_new_pages():
    output = said_with_glibc(FAULTS)
    first, second = map(int, output.split())
    assert second < first / 10
