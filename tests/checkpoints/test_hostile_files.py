"""Configs, manifests, pipes and networks made to do harm: refused in one line, at once."""

import json
import os
import time
from pathlib import Path

import onnx
import pytest

from geopose.checkpoints.__main__ import main as checkpoints
from geopose.checkpoints.formats.given import read_network
from geopose.checkpoints.formats.onnx_file import _tensors
from geopose.checkpoints.remote.listed import listed_sources
from geopose.cli import run_command
from geopose.data.image_size import image_size
from geopose.data.raw import open_raw
from geopose.data.rgb import read_rgb
from geopose.errors import InputError, one_line
from geopose.files.stamp import FileStamp
from geopose.files.yaml_file import load_yaml
from geopose.inference.config import load_config
from geopose.inference.resume.manifest import MANIFEST_NAME, Manifest
from tests.tiny_run import tiny_payload, write_checkpoint

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
YAMLS = {
    "billion laughs": LAUGHS,
    "brackets": "a: " + "[" * 3000,
    "brackets that close": "a: " + "[" * 3000 + "]" * 3000,
    "braces": "{" * 1500,
    "lines of brackets": "a:\n " + "[\n " * 3000,
    "dashes": "- " * 3000 + "a",
    "questions": "? " * 3000 + "a",
    "itself": "a: &a [*a]",
    "references": "a0: x\n"
    + "".join(f"a{i}: '${{a{i - 1}}}${{a{i - 1}}}'\n" for i in range(1, 40)),
    "lists of references": "a0: x\n"
    + "".join(f"a{i}: ['${{a{i - 1}}}', '${{a{i - 1}}}']\n" for i in range(1, 40)),
    "long": "a: b\n" * 300_000,
    "digits": "a: " + "9" * 5000,
    "bytes": "\x00\x01\x02",
    "code": "a: !!python/object/apply:os.system [true]",
}


@pytest.mark.parametrize("name", YAMLS)
def test_configs_are_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(YAMLS[name])
    started = time.process_time()
    for read in (load_config, listed_sources, read_network):
        with pytest.raises(InputError, match=r"a\.yaml") as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert time.process_time() - started < 5


def test_a_model_that_builds_on_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b.yaml").write_text(LAUGHS)
    (tmp_path / "a.yaml").write_text("defaults: [{part: b}]\n")
    with pytest.raises(InputError, match=r"b\.yaml"):
        read_network(tmp_path / "a.yaml")


def test_what_people_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1}\nother: {<<: *b, y: '${base.x}'}\n", encoding="utf-8-sig")
    assert load_yaml(path).other.y == 1


@pytest.mark.parametrize("read", [read_rgb, image_size, open_raw, FileStamp.of_file])
def test_pipes_are_not_waited_for(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises((InputError, OSError), match="pipe"):
        read(tmp_path / "a.npy")


RECORD = {"settings": "s", "source": [1, 2, 3], "gsd_m": 0.5, "files": {"a": [1, 2]}}
BROKEN = [
    '{"source": [1e999, 2, 3]}',
    '{"source": [1, -1e999, 3]}',
    '{"gsd_m": NaN}',
    '{"gsd_m": 1e999}',
    '{"files": {"a": [1e999, 2]}}',
    '{"files": {"a": [1.5, 2]}}',
    '{"files": []}',
    '{"source": [10' + "0" * 400 + ", 2, 3]}",
]


@pytest.mark.parametrize("change", BROKEN)
def test_numbers_that_are_none_in_manifest_and_journal(tmp_path: Path, change: str) -> None:
    record = {**RECORD, **json.loads(change)}
    content = {
        "format": 1, "settings": {}, "checkpoints": {}, "archive": None, "images": {"i": record},
    }  # fmt: skip
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    line = json.dumps({"image": "j", **record})
    good = json.dumps({"image": "k", **RECORD})
    (tmp_path / "manifest.process-0.jsonl").write_text(f"{line}\n{good}\n")
    assert set(Manifest.load(tmp_path).records) == {"k"}


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoints": {"a": [1, 2, 3, "short"]}},
        {"checkpoints": {"a": [1e999, 2, 3, "0" * 64]}},
        {"checkpoints": {"a": []}},
        {"archive": [1e999, 2, "x"]},
        {"archive": 5},
    ],
)
def test_a_manifest_that_none_wrote(tmp_path: Path, change: dict) -> None:
    content = {"format": 1, "settings": {}, "checkpoints": {}, "archive": None, "images": {}}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**content, **change}))
    manifest = Manifest.load(tmp_path)
    assert (manifest.hashes, manifest.archive) == ({}, None)


def elsewhere() -> onnx.TensorProto:
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_sparse_attribute(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["x"])
    node.attribute.add(name="sparse_value", type=11).sparse_tensor.values.CopyFrom(elsewhere())


def in_sparse_list(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["x"])
    node.attribute.add(name="v", type=12).sparse_tensors.add().indices.CopyFrom(elsewhere())


def in_branch(model: onnx.ModelProto) -> None:
    branch = model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=5).g
    branch.sparse_initializer.add().values.CopyFrom(elsewhere())


def in_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant").attribute.add(name="value", type=4).t.CopyFrom(
        elsewhere()
    )


def in_default(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="d").attribute_proto.add(name="a", type=4).t.CopyFrom(
        elsewhere()
    )


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(elsewhere())


def in_weights(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(elsewhere())


@pytest.mark.parametrize(
    "put", [in_sparse_attribute, in_sparse_list, in_branch, in_function, in_default, in_training,
            in_weights],
)  # fmt: skip
def test_weights_elsewhere_are_found_wherever_they_are_named(tmp_path: Path, put) -> None:
    path = tmp_path / "a.onnx"
    values = [
        onnx.helper.make_tensor_value_info(name, 1, [1])
        for name in ("image", "gsd", "agl", "magnitude", "scale", "direction")
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", values[:2], values[2:]))
    put(model)
    assert any(tensor.external_data for tensor in _tensors(model))
    path.write_bytes(model.SerializeToString())
    from geopose.checkpoints.load import read_facts

    with pytest.raises(InputError, match=r"a\.onnx: (keeps weights in other files|holds sparse)"):
        read_facts(path)


def test_names_from_a_file_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\r\x9b"
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["dataset"] = {"fold": escape}
    payload["checkpoint_data"]["config"]["model"]["slug"] = f"a{escape}b"
    payload["averaged_from"] = [{"file": escape, "sha256": ""}]
    payload["versions"] = {escape: escape}
    import torch

    torch.save(payload, tmp_path / "a.pth")
    run_command(checkpoints, ["info", str(tmp_path / "a.pth")])
    said = capsys.readouterr()
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(said.out + said.err)
    assert "owned" in said.out


def test_errors_do_not_either(tmp_path: Path) -> None:
    assert one_line("a\x1b[31mb\x07\nc\udcff") == "a\\x1b[31mb\\x07 c\\udcff"
    assert one_line("Zürich, 数据") == "Zürich, 数据"
    write_checkpoint(tmp_path / "a.pth")
