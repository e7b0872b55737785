"""Networks run by OpenVINO answer as torch does, in float32 and in bfloat16."""

import logging

import numpy as np
import pytest
import torch

from geopose import keys
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.errors import RunError
from geopose.inference.engines import backends, openvino_engine
from geopose.inference.engines.backends import prepare
from geopose.inference.engines.openvino_engine import GraphNetwork, OpenVinoNetwork, has_openvino
from geopose.inference.engines.precision import resolve_precision
from geopose.inference.submission.command import submit
from tests.tiny_networks import VARIANTS, answers, network
from tests.tiny_run import SIZES, run_script, write_checkpoint, write_config, write_split

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(
    resolve_precision("bf16", CPU) != "bf16", reason="this processor has no bfloat16"
)
needs_openvino = pytest.mark.skipif(not has_openvino(), reason="openvino is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))


@needs_openvino
@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_answers(name):
    model = network(name)
    found_by = prepare(model, "openvino", "fp32")
    assert isinstance(found_by, OpenVinoNetwork)
    for size in ((1, 3, 70, 131), (2, 3, 64, 96), (1, 3, 131, 70), (1, 3, 70, 131)):
        expected, found = answers(model, *size), answers(found_by, *size)
        for key in found:
            atol = 1e-4 * float(expected[key].abs().max())
            torch.testing.assert_close(found[key], expected[key], atol=atol, rtol=0, msg=key)


@needs_openvino
@needs_bf16
@pytest.mark.parametrize("name", ["published b6", "published b7", "hyper column", "flow map"])
def test_bfloat16_keeps_the_digits_of_results(name):
    model = network(name)
    found_by = prepare(model, "openvino", "bf16")
    expected, found = answers(model, 1, 3, 64, 64), answers(found_by, 1, 3, 64, 64)
    for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_VFLOW_DIRECTION):
        values = found[key][found[key] != 0]
        assert (values != values.bfloat16().float()).float().mean() > 0.9
    for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_VFLOW_SCALE, keys.OUTPUT_VFLOW_DIRECTION):
        difference = (found[key] - expected[key]).abs().max()
        assert 0 < difference < 0.05 * expected[key].abs().max()


@needs_openvino
def test_a_network_is_converted_once(tmp_path, monkeypatch, caplog):
    model = network("published b6")
    with caplog.at_level(logging.INFO):
        first = answers(OpenVinoNetwork(model, "fp32"), 1, 3, 64, 64)
    assert "converting" in caplog.text
    monkeypatch.setattr(openvino_engine, "_convert", lambda *_: pytest.fail("converted once more"))
    again = answers(OpenVinoNetwork(model, "fp32"), 1, 3, 64, 64)
    for key, value in first.items():
        torch.testing.assert_close(again[key], value, atol=0, rtol=0)
    with pytest.raises(pytest.fail.Exception, match="converted once more"):
        OpenVinoNetwork(network("published b6", seed=1), "fp32")  # other weights


@needs_openvino
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("GEOPOSE_CACHE", str(blocked))
    found = answers(OpenVinoNetwork(network("published b6"), "fp32"), 1, 3, 64, 64)
    assert torch.isfinite(found[keys.OUTPUT_AGL_MASK]).all()
    assert "cannot be kept for later runs" in caplog.text


@needs_openvino
def test_layers_that_differ_in_a_number_only_are_other_networks():
    names = set()
    for gain in (1.0, 10.0):
        model = network("published b6")
        model.agl_head.output_gain = gain
        names.add(openvino_engine._digest(model))
    assert len(names) == 2


@needs_openvino
@pytest.mark.parametrize("file", ["network.xml", "network.bin"])
def test_a_damaged_cache_is_mended(file, tmp_path, caplog):
    model = network("published b6")
    expected = answers(OpenVinoNetwork(model, "fp32"), 1, 3, 64, 64)
    (damaged,) = (tmp_path / "cache/openvino").glob(f"*/{file}")
    size = damaged.stat().st_size
    with damaged.open("r+b") as opened:
        opened.truncate(size // 2)
    for _ in range(2):
        found = answers(OpenVinoNetwork(model, "fp32"), 1, 3, 64, 64)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=0, rtol=0)
    assert caplog.text.count("cannot be used, converting again") == 1
    assert damaged.stat().st_size == size


class Turns:
    """Stands for a compiled network; says when it gives its memory back."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def get_compiled_model(self) -> "Turns":
        """Itself."""
        return self

    def release_memory(self) -> None:
        """Noted."""
        self.log.append(self.name)


@needs_openvino
def test_one_compiled_network_at_a_time_has_memory_for_its_maps(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(GraphNetwork, "_working", None)
    networks = {name: OpenVinoNetwork(network("published b6"), "fp32") for name in "ab"}
    small, large = torch.Size((1, 3, 64, 64)), torch.Size((1, 3, 64, 96))
    for name, one in networks.items():
        one._requests.update({small: Turns(name, log), large: Turns(name.upper(), log)})
    for name, size in (("a", small), ("a", small), ("b", small), ("b", large), ("a", large)):
        networks[name]._take_turn(size)
        log.append("|")
    assert "".join(log) == "||a|b|B|"


@needs_openvino
def test_what_waits_while_large_images_are_computed_holds_no_memory(monkeypatch):
    monkeypatch.setattr(OpenVinoNetwork, "_working", None)
    one, other = (OpenVinoNetwork(network("published b6"), "fp32") for _ in "ab")
    large, turned = torch.Size((1, 3, 1024, 2048)), torch.Size((1, 3, 2048, 1024))
    for network_, size in ((one, large), (one, turned), (other, turned), (other, turned)):
        network_._take_turn(size)
        assert not one._requests
        network_._requests[size] = Turns("a", [])
    one._take_turn(large)
    assert not other._requests


@needs_openvino
def test_members_of_an_ensemble_take_turns():
    models = [network("published b6", seed) for seed in range(2)]
    networks = [OpenVinoNetwork(model, "fp32") for model in models]
    sizes = [(1, 3, 64, 64), (1, 3, 64, 96), (1, 3, 32, 32), (1, 3, 96, 64)]
    for _ in range(2):
        for size in sizes:
            for one, model in zip(networks, models, strict=True):
                found = answers(one, *size)[keys.OUTPUT_AGL_MASK]
                expected = answers(model, *size)[keys.OUTPUT_AGL_MASK]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_openvino
def test_what_openvino_does_not_know_runs_without_it(monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise RuntimeError("no such\noperation")

    monkeypatch.setattr(openvino_engine, "_convert", refuse)
    model = network("published b6")
    prepared = prepare(model, "openvino", "fp32")
    assert not isinstance(prepared, OpenVinoNetwork)
    assert "OpenVINO failed, going on without it: RuntimeError: no such operation" in caplog.text
    key = keys.OUTPUT_AGL_MASK
    found, expected = answers(prepared, 1, 3, 64, 64)[key], answers(model, 1, 3, 64, 64)[key]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    # In bf16 another engine would round at other places than the manifest says.
    with pytest.raises(RunError, match=r"no such operation.*use inference.backend=torch"):
        prepare(model, "openvino", "bf16")


@needs_openvino
def test_a_graph_that_answers_differently_is_not_used(tmp_path, monkeypatch, caplog):
    convert, other = openvino_engine._convert, network("published b6", seed=1)
    monkeypatch.setattr(openvino_engine, "_convert", lambda _: convert(other))
    prepared = prepare(network("published b6"), "openvino", "fp32")
    assert not isinstance(prepared, OpenVinoNetwork)
    assert "going on without it: RunError: answers differ by" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.xml"))


@needs_openvino
def test_a_failure_at_an_image_says_what_to_do(monkeypatch):
    network_ = OpenVinoNetwork(network("published b6"), "fp32")
    monkeypatch.setattr(
        network_, "_take_turn", lambda _: (_ for _ in ()).throw(RuntimeError("std::bad_alloc"))
    )
    with pytest.raises(RunError, match=r"1 x 3 x 64 x 64 \(std::bad_alloc\).*backend=torch"):
        answers(network_, 1, 3, 64, 64)


@needs_openvino
def test_nothing_is_reported_to_anyone():
    code = (
        "from geopose.inference.engines.openvino_engine import openvino_package; "
        "openvino_package(); import openvino.tools.ovc.telemetry_utils as t; print(t.tm.__name__)"
    )
    done = run_script("-c", code)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub", done.stderr


@needs_openvino
def test_a_run_by_openvino_writes_what_torch_writes(tmp_path, monkeypatch, caplog):
    write_split(tmp_path / "data")
    models = [write_checkpoint(tmp_path / f"{seed}.pth", seed=seed) for seed in (1, 2)]
    monkeypatch.setattr(backends, "LEAST_PIXELS_TO_CONVERT", 1)  # so that auto is OpenVINO
    written = {}
    for backend in ("torch", "auto"):
        (tmp_path / backend).mkdir()
        config = write_config(tmp_path / backend / "c.yaml", models, backend=backend)
        arguments = ["--data-dir", str(tmp_path / "data"), "ensemble.tta=flips"]
        with caplog.at_level(logging.INFO):
            assert run_command(submit, [str(config), *arguments]) == 0
        count = {"torch": 0, "auto": 2}[backend]
        assert caplog.text.count("converting a network for OpenVINO") == count
        files = sorted((tmp_path / backend / "out/submission").glob("*_AGL.tif"))
        written[backend] = [read_agl_m(file) for file in files]
    assert "going on without it" not in caplog.text
    assert len(written["torch"]) == len(SIZES)
    for expected, found in zip(written["torch"], written["auto"], strict=True):
        np.testing.assert_allclose(found, expected, atol=0.0101)


@needs_openvino
@needs_bf16
def test_predictions_of_two_engines_in_16_bits_share_no_archive(tmp_path, caplog):
    write_split(tmp_path / "data")
    config = write_config(tmp_path / "c.yaml", [write_checkpoint(tmp_path / "a.pth")])
    arguments = [str(config), "--data-dir", str(tmp_path / "data"), "inference.precision=bf16"]
    with caplog.at_level(logging.INFO):
        assert run_command(submit, [*arguments, "inference.backend=torch"]) == 0
        assert run_command(submit, arguments) == 0  # auto: OpenVINO
    assert "made with other settings (engine torch -> openvino)" in caplog.text
    assert "bf16 by openvino, 1 process" in caplog.text


SIGNAL = """
import gc, signal
from geopose.inference.engines.openvino_engine import OpenVinoNetwork
from tests.tiny_networks import answers, network
for seed in range(3):
    answers(OpenVinoNetwork(network("published b6", seed), "bf16"), 1, 3, 64, 64)
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("stopped"))
signal.raise_signal(signal.SIGTERM)
"""


@needs_openvino
@needs_bf16
def test_signals_are_handled_after_networks_have_come_and_gone():
    """On processors with AMX OpenVINO moves the stack of signal handlers."""
    done = run_script("-c", SIGNAL)
    assert (done.returncode, done.stdout.strip()) == (0, "stopped"), done.stderr
