"""Networks in 8 bits: calibrated on a user's images, kept to their score, told apart, harmless."""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from geopose import keys
from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.int8_file import read_int8_facts, read_int8_graph
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.errors import InputError
from geopose.inference.build import load_engine
from geopose.inference.engines.openvino_engine import HeadsGraph, has_openvino, heads_graph
from geopose.inference.submission.command import submit, submit_ddp
from geopose.quantization import command
from geopose.quantization.calibration import shuffled
from geopose.quantization.layers import digits, not_in_8_bits, readable
from tests.tiny_data import write_data_dir
from tests.tiny_networks import answers, network
from tests.tiny_run import run_script, write_checkpoint, write_config, write_split

pytestmark = pytest.mark.skipif(not has_openvino(), reason="openvino is not installed")
needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="nncf is not installed (extra int8)"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOPOSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def quantize(*arguments: object) -> int:
    return run_command(main, ["quantize", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory, _own_cache) -> Path:
    """A folder with a.pth, images in `data`, and a.int8 that was calibrated on six of them."""
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("nncf is not installed (extra int8)")
    folder = tmp_path_factory.mktemp("int8")
    write_checkpoint(folder / "a.pth", seed=3)
    write_data_dir(folder / "data", ["AAA", "BBB"] * 4, size=(64, 96))
    given = ["--data-dir", folder / "data", "--images", 6, "--max-drop", 1, "--tta", "fliplr"]
    assert quantize(folder / "a.pth", folder / "a.int8", *given) == 0
    return folder


def test_the_answers_are_those_of_the_network_at_any_size(made: Path) -> None:
    found_by = load_engine(made / "a.int8").model
    expected_by = load_engine_of(made / "a.pth")
    for size in ((1, 3, 64, 96), (2, 3, 70, 131), (1, 3, 131, 70)):
        expected, found = answers(expected_by, *size), answers(found_by, *size)
        for key in (keys.OUTPUT_AGL_MASK, keys.OUTPUT_MAGNITUDE_MASK):
            assert found[key].shape == expected[key].shape
            error = (found[key] - expected[key]).square().mean().sqrt()
            assert 0 < error < 0.1 * expected[key].std() + 0.05 * expected[key].mean()


def load_engine_of(path: Path) -> torch.nn.Module:
    from geopose.checkpoints.load import load_model

    return load_model(path).model


def test_the_file_says_what_it_is_and_was_made_of(made: Path, capsys) -> None:
    assert run_command(main, ["info", str(made / "a.pth"), str(made / "a.int8")]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    sha256 = first.splitlines()[-1].split()[-1]
    assert "int8 but for" in second
    assert "calibrated on 6 train images" in second
    assert "(2 images, views fliplr)" in second
    assert f"made from:      a.pth {sha256}" in second
    for line in ("architecture", "slug", "parameters", "channel order", "downsample"):
        said = [[x for x in part.splitlines() if f"{line}:" in x] for part in (first, second)]
        assert said[0] == said[1] != []
    quantized = read_int8_facts(made / "a.int8")["quantized"]
    assert set(quantized["versions"]) == {"openvino", "nncf"}
    assert quantized["calibration"]["images"] == 6
    assert len(quantized["calibration"]["sha256"]) == 64


def test_the_same_images_make_the_same_network(made: Path, tmp_path: Path, capsys) -> None:
    given = ["--data-dir", made / "data", "--images", 6, "--max-drop", 1, "--tta", "fliplr"]
    assert quantize(made / "a.pth", tmp_path / "b.int8", *given) == 0
    assert capsys.readouterr().out.count("\n") == 1  # the hash; progress goes to standard error
    first, second = (folder / name for folder, name in ((made, "a.int8"), (tmp_path, "b.int8")))
    said = [read_int8_facts(path)["quantized"] for path in (first, second)]
    assert said[0] == said[1]
    found = [answers(load_engine(path).model, 1, 3, 64, 96) for path in (first, second)]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=0, rtol=0)


def test_a_run_says_int8_and_shares_no_archive_with_others(made: Path, tmp_path, caplog) -> None:
    data = write_split(tmp_path / "data")
    out = ["submission_dir=" + str(tmp_path / "out"), "--data-dir", str(data)]
    config = write_config(tmp_path / "c.yaml", [made / "a.int8"])
    with caplog.at_level(logging.INFO):
        assert run_command(submit, [str(config), *out]) == 0
    assert "a.int8: in int8, calibrated on 6 train images" in caplog.text
    assert "int8 and fp32, 1 process" in caplog.text
    settings = json.loads((tmp_path / "out/manifest.json").read_text())["settings"]
    assert [entry["precision"] for entry in settings.values()] == ["int8 and fp32"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run_command(submit_ddp, [str(config), *out]) == 0
    assert "archive kept" in caplog.text
    caplog.clear()
    other = write_config(tmp_path / "d.yaml", [made / "a.pth"])
    with caplog.at_level(logging.INFO):
        assert run_command(submit, [str(other), *out]) == 0
    assert "made with other settings" in caplog.text
    assert "precision int8 and fp32 -> fp32" in caplog.text


def test_an_ensemble_may_mix_8_bits_and_others(made: Path, tmp_path: Path) -> None:
    data = write_split(tmp_path / "data", [(64, 71), (97, 130)])
    maps = {}
    for name, models in {
        "int8": [made / "a.int8"],
        "float": [made / "a.pth"],
        "mixed": [made / "a.int8", made / "a.pth"],
    }.items():
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name / "c.yaml", models, batch_size=2)
        arguments = [str(config), "--data-dir", str(data), "ensemble.tta=d4"]
        assert run_command(submit, arguments) == 0
        files = sorted((tmp_path / name / "out/submission").glob("*_AGL.tif"))
        maps[name] = [read_agl_m(file) for file in files]
    for a, b, mean in zip(*maps.values(), strict=True):
        np.testing.assert_allclose(mean, (a + b) / 2, atol=0.0101)


def test_it_runs_without_nncf(made: Path) -> None:
    code = (
        "import sys; sys.modules['nncf'] = None\n"
        "from pathlib import Path; from geopose.inference.build import load_engine\n"
        "from tests.tiny_networks import answers\n"
        f"print(len(answers(load_engine(Path({str(made / 'a.int8')!r})).model, 1, 3, 64, 64)))"
    )
    done = run_script("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr


def test_without_openvino_it_says_what_is_missing(made: Path, monkeypatch) -> None:
    monkeypatch.setattr("geopose.inference.engines.int8_engine.has_openvino", lambda: False)
    with pytest.raises(InputError, match=r"a\.int8 needs the package openvino.*openvino\]"):
        load_engine(made / "a.int8")
    assert run_command(main, ["info", str(made / "a.int8")]) == 0


def test_what_has_no_weights_gives_none(made: Path, tmp_path: Path, capsys) -> None:
    assert run_command(main, ["export", str(made / "a.int8"), str(tmp_path / "b.pth")]) == 2
    assert "gives no weights" in capsys.readouterr().err
    assert quantize(made / "a.int8", tmp_path / "b.int8", "--data-dir", made / "data") == 2
    assert "gives no weights" in capsys.readouterr().err


@needs_nncf
def test_a_score_that_falls_too_far_is_not_written(made, tmp_path, monkeypatch, capsys) -> None:
    scores = iter([0.75, 0.7479])
    monkeypatch.setattr(command, "score_on", lambda *_: next(scores))
    given = ["--data-dir", made / "data", "--images", 2]
    assert quantize(made / "a.pth", tmp_path / "b.int8", *given) == 1
    said = capsys.readouterr().err
    assert "falls by 0.00210, more than --max-drop 0.002; nothing was written" in said
    assert not (tmp_path / "b.int8").exists()


@needs_nncf
def test_images_without_truth_calibrate_and_measure_nothing(made, tmp_path, capsys, caplog) -> None:
    data = write_split(tmp_path / "data", [(64, 71), (97, 130)])
    given = [made / "a.pth", tmp_path / "b.int8", "--data-dir", data, "--split", "test"]
    assert quantize(*given, "--max-drop", 0.1) == 2
    assert "has truth" in capsys.readouterr().err
    assert quantize(*given) == 0
    assert "the score was not measured" in caplog.text
    assert "only 2 images are there" in caplog.text
    assert read_int8_facts(tmp_path / "b.int8")["quantized"]["score"] is None


def test_arguments_are_checked_before_any_work(tmp_path: Path, capsys, monkeypatch) -> None:
    write_checkpoint(tmp_path / "a.pth")
    data = write_data_dir(tmp_path / "data", ["AAA"])
    assert quantize(tmp_path / "a.pth", tmp_path / "a.onnx", "--data-dir", data) == 2
    assert "must end with .int8" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "openvino" or None)
    assert quantize(tmp_path / "a.pth", tmp_path / "a.int8", "--data-dir", data) == 2
    assert "geopose[int8]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["published b6", "published b7", "height only", "flow map"])
def test_what_decides_about_digits_stays(name: str) -> None:
    heads = heads_graph(network(name))
    kept = {readable(x) for x in digits(heads)}
    planes = {
        readable(x.get_friendly_name()): x.input(1).get_shape()[1]
        for x in heads.graph.get_ops()
        if x.get_type_name() == "Convolution"
    }
    body = {x for x in planes if x.startswith(("encoder", "decoder"))}
    assert body & kept == {x for x in body if planes[x] < 32}, "the first layer has 3"
    assert "encoder.encoder.conv_stem" in kept
    gsd = {"published b7": "agl_head.height.conv2"}.get(name, "agl_head.height.0")
    assert gsd in kept
    assert any(x.startswith("orientation_head") for x in kept)
    wide = {x for x in kept if planes.get(x, 32) >= 32}
    assert not any(x.startswith("agl_head.upsample") for x in wide)


@needs_nncf
@pytest.mark.parametrize(
    "name", ["published b6", "published b7", "height only", "flow map", "transformer-like encoder"]
)
def test_a_network_is_quantised_or_says_where_not(name, tmp_path, caplog) -> None:
    from geopose.quantization.quantize import quantize as in_8_bits

    class Shown:
        records = range(2)

        @staticmethod
        def inputs(number: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng(number)
            image = rng.normal(size=(1, 3, 64, 64)).astype(np.float32)
            return {"image": image, "gsd": np.full((1, 1), 0.5, np.float32)}

    heads = heads_graph(network(name))
    found = in_8_bits(heads, Shown(), "a.pth")
    assert isinstance(found, HeadsGraph)
    left = {*not_in_8_bits(found.graph)} - {*digits(heads)}
    for layer in left:
        assert readable(layer) in caplog.text
    assert len(not_in_8_bits(found.graph)) < len(not_in_8_bits(heads.graph))
    assert all(map(_has_its_zero_in_the_middle, found.graph.get_ops()))


def _has_its_zero_in_the_middle(node) -> bool:
    """Whether a rounding, if a node is one, is to as much below zero as above, or nothing below."""
    if node.get_type_name() != "FakeQuantize":
        return True
    low, high = (node.input_value(n).get_node().get_data() for n in (1, 2))
    return bool(np.all((low == 0) | np.isclose(-low, high, rtol=0.02)))


def test_calibration_takes_every_city_in_turn(tmp_path: Path) -> None:
    from geopose.data.layouts.splits import read_split

    write_data_dir(tmp_path / "data", ["AAA"] * 6 + ["BBB"] * 2, size=(16, 16))
    cities = [record.city for record in shuffled(read_split(tmp_path / "data", "train"))]
    assert cities == ["AAA", "BBB", "AAA", "BBB", "AAA", "AAA", "AAA", "AAA"]


GRAPHS = {
    "another operation": (b'version="opset1"', b'version="extension"', "only OpenVINO's own"),
    "an entity": (b"<net", b'<!DOCTYPE a [<!ENTITY b "c">]><net', "declarations"),
    "no XML": (b"<net", b"<<", "not a readable .int8"),
    "weights beyond the file": (b'offset="0"', b'offset="99999999999"', "not in it"),
    "an unknown operation": (b'type="Convolution"', b'type="Gonvolution"', "cannot read it"),
    "another input": (b'names="gsd"', b'names="gsx"', "must take"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_spoilt_graphs_are_refused(kind: str, made: Path, tmp_path: Path) -> None:
    graph, weights = read_int8_graph(made / "a.int8")
    before, after, said = GRAPHS[kind]
    assert before in graph
    rewrite(made / "a.int8", tmp_path / "b.int8", graph.replace(before, after), weights)
    with pytest.raises(InputError, match=said) as caught:
        load_engine(tmp_path / "b.int8")
    assert "\n" not in str(caught.value)


def rewrite(source: Path, target: Path, graph: bytes, weights: bytes, **changes: object) -> None:
    """The same file with another graph, or other facts about it."""
    with safe_open(source, "np") as file:
        facts = json.loads(file.metadata()["geopose"])
    facts["quantized"].update(changes)
    arrays = {"graph": np.frombuffer(graph, np.uint8), "weights": np.frombuffer(weights, np.uint8)}
    save_file(arrays, target, {"geopose": json.dumps(facts)})


@pytest.mark.parametrize(
    "changes",
    [{"heads": ["agl"]}, {"heads": ["direction", "agl"]}, {"heads": 3}, {"stride": 0},
     {"head_stride": "1"}, {"heads": ["agl", "magnitude", "direction", "shell"]}],
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(changes, made: Path, tmp_path: Path) -> None:
    rewrite(made / "a.int8", tmp_path / "b.int8", *read_int8_graph(made / "a.int8"), **changes)
    with pytest.raises(InputError, match=r"b\.int8"):
        load_engine(tmp_path / "b.int8")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_part_of_a_file_is_refused(share: float, made: Path, tmp_path: Path) -> None:
    content = (made / "a.int8").read_bytes()
    (tmp_path / "b.int8").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"b\.int8"):
        load_engine(tmp_path / "b.int8")


def test_signals_are_handled_after_quantising(made: Path, tmp_path: Path) -> None:
    """Each further state of OpenVINO would move the stack of signal handlers."""
    code = (
        "import gc, signal, sys; from geopose.checkpoints.__main__ import main\n"
        "main(sys.argv[1:]); gc.collect()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('stopped'))\n"
        "signal.raise_signal(signal.SIGTERM)"
    )
    arguments = ["quantize", made / "a.pth", tmp_path / "b.int8", "--data-dir", made / "data"]
    arguments += ["--images", 2, "--tta", "null", "--measure", 2, "--max-drop", 1]
    done = run_script("-c", code, *arguments)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["stopped"]), done.stderr
