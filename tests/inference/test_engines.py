"""Which engine runs a network, in which numbers, and what torch answers."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geopose import keys
from geopose.errors import InputError
from geopose.inference import build
from geopose.inference.config import load_config
from geopose.inference.engines import backends
from geopose.inference.engines.backends import prepare, resolve_backend
from geopose.inference.engines.folding import folded
from geopose.inference.engines.precision import resolve_precision
from geopose.inference.engines.torch_engine import CompiledNetwork, TorchNetwork, _Float32Conv
from tests.tiny_networks import VARIANTS, answers, network
from tests.tiny_run import write_checkpoint, write_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG = backends.LEAST_PIXELS_TO_CONVERT


def test_auto_is_torch_on_a_gpu():
    assert resolve_backend("auto", GPU, "bf16", 10**12) == "torch"
    assert resolve_backend("compile", GPU, "bf16") == "compile"


@pytest.mark.parametrize("installed", [True, False])
def test_auto_is_openvino_on_a_cpu_where_it_pays(installed, monkeypatch):
    monkeypatch.setattr(backends, "has_openvino", lambda: installed)
    assert resolve_backend("auto", CPU, "fp32", LONG - 1) == "torch"
    long = resolve_backend("auto", CPU, "fp32", LONG)
    short_in_bf16 = resolve_backend("auto", CPU, "bf16")  # the same when the run is started again
    assert {long, short_in_bf16} == {"openvino" if installed else "torch"}


def test_backends_that_are_asked_for(monkeypatch):
    assert resolve_backend("compile", CPU, "fp32") == "compile"
    assert resolve_backend("torch", CPU, "fp32", 10**9) == "torch"
    for installed in (True, False):
        monkeypatch.setattr(backends, "has_openvino", lambda: installed)  # noqa: B023
        with pytest.raises(InputError, match="openvino computes on a CPU"):
            resolve_backend("openvino", GPU, "tf32")
    with pytest.raises(InputError, match="pip install openvino"):
        resolve_backend("openvino", CPU, "fp32")


def test_eager_is_the_old_name_of_torch(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "a.pth")
    old = write_config(tmp_path / "c.yaml", [checkpoint], backend="eager")
    assert load_config(old).backend == "torch"
    assert load_config(old, ["inference.backend=eager"]).backend == "torch"


@pytest.mark.parametrize("name", VARIANTS)
def test_torch_is_the_network_as_loaded(name):
    model = network(name)
    expected = answers(model, 3, 3, 64, 96)
    engine = prepare(model, "torch", "fp32")
    assert isinstance(engine, TorchNetwork)
    assert prepare(engine, "openvino", "fp32") is engine
    found = answers(engine, 3, 3, 64, 96)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        atol = 1e-5 * float(value.abs().max())
        torch.testing.assert_close(found[key], value, atol=atol, rtol=0, msg=key)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_16_bits_keep_the_digits_of_results(name, kind):
    """Rounded to the 8 bits of bfloat16, heights near 100 m would come in steps of half a metre."""
    model = network(name)
    expected = answers(model, 1, 3, 64, 64)
    engine = prepare(model, "torch", kind)
    found = answers(engine, 1, 3, 64, 64)
    for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_VFLOW_DIRECTION, keys.OUTPUT_VFLOW_SCALE):
        assert found[key].dtype == torch.float32
        values = found[key][found[key] != 0]
        assert (values != values.to(engine.kind).float()).float().mean() > 0.9
    for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_VFLOW_SCALE):
        atol = 0.05 * float(expected[key].abs().max()) + 1e-3
        torch.testing.assert_close(found[key], expected[key], atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["published b6", "published b7", "hyper column"])
def test_what_decides_about_digits_keeps_its_weights_in_16_bits(name):
    model = network(name)
    last = {"published b6": "height.2.", "published b7": "height.conv3.", "hyper column": ""}[name]
    kept = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if key.startswith(("orientation_head.", "agl_head." + last))
    }
    changed = prepare(model, "torch", "bf16").model.state_dict()
    names = {key.replace("_head.head.", "_head.").replace(".conv.", "."): key for key in changed}
    for key, value in kept.items():
        assert torch.equal(changed[names[key.replace(".conv.", ".")]], value), key
    assert any(value.dtype == torch.bfloat16 for value in changed.values())


@pytest.mark.parametrize("count", [1, 3, 8, 100])
def test_heights_come_in_rows_without_a_seam(count, monkeypatch):
    conv, x = nn.Conv2d(4, 1, 3, padding=1), torch.randn(2, 4, 9, 5).bfloat16()
    monkeypatch.setattr("geopose.inference.engines.torch_engine._VALUES_AT_ONCE", count * 2 * 4 * 5)
    expected = F.conv2d(x.float(), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(_Float32Conv(conv)(x), expected)


def test_precision_is_what_the_device_can_do(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [resolve_precision(p, cpu) for p in ("auto", "tf32", "fp16")] == ["fp32"] * 3
    for native in (True, False):
        monkeypatch.setattr("geopose.inference.engines.precision.has_native_bf16", lambda _: native)  # noqa: B023
        assert resolve_precision("bf16", cpu) == ("bf16" if native else "fp32")
        assert resolve_precision("bf16", gpu) == ("bf16" if native else "tf32")
    assert [resolve_precision(p, gpu) for p in ("auto", "fp32", "fp16")] == ["tf32", "fp32", "fp16"]


@pytest.mark.parametrize("name", VARIANTS)
def test_folding_changes_nothing_but_the_layers(name):
    model = network(name)
    norms = [type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = answers(model, 2, 3, 50, 71)
    thin = folded(model)
    found = answers(thin, 2, 3, 50, 71)
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, atol=1e-4, rtol=1e-4)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in thin.modules())
    assert left == 0 if norms else thin is not model
    reduced = prepare(thin, "torch", "bf16")
    assert answers(reduced, 1, 3, 64, 64)[keys.OUTPUT_AGL_MASK].isfinite().all()


def test_a_network_that_folding_would_change_stays_as_it_is(caplog):
    class Shared(nn.Module):
        """Its convolution's maps are used beside the BatchNorm as well."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1)
            self.norm.running_mean.fill_(3.0)

        def forward(self, image: torch.Tensor, gsd_m: torch.Tensor) -> dict[str, torch.Tensor]:
            maps = self.conv(image)
            return {"sum": maps + self.norm(maps) + gsd_m[:, :, None, None]}

    model = Shared().eval()
    assert folded(model) is model
    assert "runs as it is" in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_only_tf32_is_rounded_to_tf32_on_a_gpu(precision, monkeypatch, tmp_path):
    """What stays in float32 beside 16 bits would lose its digits."""
    said = []
    monkeypatch.setattr(build, "allow_tf32", said.append)
    monkeypatch.setattr(build, "_member", lambda *_: nn.Identity())
    monkeypatch.setattr(build, "PoseEnsemble", lambda *_: nn.Identity())
    monkeypatch.setattr(build, "resolve_precision", lambda wanted, _: wanted)
    config = write_config(tmp_path / "c.yaml", [write_checkpoint(tmp_path / "a.pth")])
    chosen = load_config(config, [f"inference.precision={precision}"])
    benchmark = torch.backends.cudnn.benchmark
    build.build_ensemble(chosen, GPU)
    torch.backends.cudnn.benchmark = benchmark
    assert said == [precision == "tf32"]


@pytest.mark.parametrize("message", ["no compiler\nfound", ""])
def test_what_cannot_be_compiled_runs_as_it_is(message, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", lambda model, **_: refuse)
    model = network("published b6")
    prepared = prepare(model, "compile", "fp32")
    assert isinstance(prepared, CompiledNetwork)
    with caplog.at_level(logging.WARNING):
        found = [answers(prepared, 1, 3, 64, 64) for _ in range(2)]
    assert caplog.text.count("torch.compile failed") == 1
    assert f"without it: RuntimeError: {' '.join(message.split())}" in caplog.text
    expected = answers(model, 1, 3, 64, 64)[keys.OUTPUT_AGL_MASK]
    torch.testing.assert_close(found[1][keys.OUTPUT_AGL_MASK], expected, atol=1e-3, rtol=0)
