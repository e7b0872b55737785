"""Checkpoint files: what is read, what is refused and how it is said."""

import collections
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from geopose.checkpoints.export import write_network
from geopose.checkpoints.formats.pth import load_checkpoint, save_checkpoint
from geopose.checkpoints.load import load_model, read_facts
from geopose.checkpoints.weights import mean_weights
from geopose.errors import InputError, RunError
from tests.tiny_run import model_config, tiny_payload, write_checkpoint

METRICS = {
    "loss": np.float64(3.5),
    "epoch": np.int64(4),
    "flag": np.bool_(True),
    "half": np.float32(0.5),
    "name": np.str_("fold0"),
    "nested": collections.defaultdict(list, {"a": [np.float32(1.25)]}),
    "ordered": collections.OrderedDict(b=2),
    "per_city": np.array([[0.5, 0.25], [1.0, 2.0]], dtype=np.float32).T,
    "counts": np.array(7),
}
PLAIN = {
    "loss": 3.5, "epoch": 4, "flag": True, "half": 0.5, "name": "fold0", "nested": {"a": [1.25]},
    "ordered": {"b": 2}, "per_city": [[0.5, 1.0], [0.25, 2.0]], "counts": [7],
}  # fmt: skip


class Attack:
    """Runs a command when unpickled without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def old_payload():
    """As a trainer of 2021 left it: numpy scalars, optimizer state, no word on channels."""
    payload = tiny_payload()
    del payload["channel_order"]
    del payload["checkpoint_data"]["config"]["model"]["channel_order"]
    payload["checkpoint_data"]["metrics"] = METRICS
    payload["optimizer_state_dict"] = {"state": {0: {"exp_avg": torch.zeros(5)}}, "step": 7}
    return payload


@pytest.mark.parametrize("zipped", [True, False])
def test_old_files_with_numpy_scalars_load_as_plain_numbers(tmp_path, zipped):
    torch.save(old_payload(), tmp_path / "old.pth", _use_new_zipfile_serialization=zipped)
    metrics = load_checkpoint(tmp_path / "old.pth")["checkpoint_data"]["metrics"]
    assert metrics == PLAIN
    assert type(metrics["loss"]) is float


def test_numpy_scalars_under_the_module_name_of_numpy_1(tmp_path):
    torch.save(old_payload(), tmp_path / "new.pth")
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as new,
        zipfile.ZipFile(tmp_path / "1.pth", "w") as old,
    ):
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.", b"numpy.core."))
    assert load_checkpoint(tmp_path / "1.pth")["checkpoint_data"]["metrics"] == PLAIN


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(tmp_path, zipped):
    payload = {**tiny_payload(), "scheduler": Attack(tmp_path / "ran")}
    torch.save(payload, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil\.pth: refused, contains posix\.system"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_checkpoint(tmp_path / "module.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_one_line(tmp_path, zipped):
    torch.save(old_payload(), tmp_path / "good.pth", _use_new_zipfile_serialization=zipped)
    good = (tmp_path / "good.pth").read_bytes()
    generator = np.random.default_rng(1)
    damaged = [good[:end] for end in (0, 1, 100, len(good) // 2, len(good) - 8)]
    for _ in range(60):
        data = bytearray(good)
        for place in generator.integers(0, min(len(data), 3000), 4):
            data[place] = generator.integers(0, 256)
        damaged.append(bytes(data))
    refused = []
    for data in damaged:
        (tmp_path / "bad.pth").write_bytes(data)
        try:
            load_checkpoint(tmp_path / "bad.pth")
        except InputError as error:
            refused.append(str(error))
    assert len(refused) >= 5
    assert all("bad.pth" in message and "\n" not in message for message in refused)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1], "holds a list"),
        ({"checkpoint_data": {}}, "no model_state_dict"),
        ({"model_state_dict": {}}, "no model_state_dict"),
        ({"model_state_dict": {"a": 1}}, "names to tensors"),
        ({"model_state_dict": {"a": torch.ones(1)}}, "config.model"),
        (
            {"model_state_dict": {"a": torch.ones(1)}, "checkpoint_data": {"config": 3}},
            "config.model",
        ),
    ],
)
def test_files_without_the_needed_keys(tmp_path, content, expected):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(InputError, match=expected):
        load_checkpoint(tmp_path / "c.pth")


def test_saved_files_say_versions_and_units(tmp_path):
    saved = load_checkpoint(write_checkpoint(tmp_path / "a.pth"))
    assert saved["units"]["scale"] == "px/m"
    assert saved["versions"]["torch"] == torch.__version__
    assert saved["channel_order"] == "rgb"


def test_saving_what_cannot_be_read_back_fails_and_keeps_the_old_file(tmp_path):
    path = write_checkpoint(tmp_path / "a.pth")
    before = path.read_bytes()
    with pytest.raises(RunError, match="pathlib"):
        save_checkpoint(path, {**tiny_payload(), "folder": tmp_path})
    with pytest.raises(RunError, match="model_state_dict"):
        save_checkpoint(path, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_loaded_model_is_the_saved_one(tmp_path):
    payload = tiny_payload(seed=4)
    save_checkpoint(tmp_path / "a.pth", payload)
    loaded = load_model(tmp_path / "a.pth")
    assert not loaded.model.training
    assert (loaded.channel_order, loaded.downsample) == ("rgb", 1)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, payload["model_state_dict"][name])


def test_old_files_are_bgr_and_predict_full_resolution_scale(tmp_path):
    payload = old_payload()
    payload["checkpoint_data"]["config"]["train"]["downsample"] = 2
    torch.save(payload, tmp_path / "old.pth")
    loaded = load_model(tmp_path / "old.pth")
    assert (loaded.channel_order, loaded.downsample) == ("bgr", 2)
    assert not loaded.scale_is_downsampled


def test_files_of_today_predict_the_scale_of_the_reduced_image(tmp_path):
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["train"]["downsample"] = 2
    save_checkpoint(tmp_path / "a.pth", payload)
    assert load_model(tmp_path / "a.pth").scale_is_downsampled


def change_weights(change):
    payload = tiny_payload()
    weights = payload["model_state_dict"]
    first = next(name for name in weights if name.startswith("decoder") and "conv" in name)
    if change == "missing":
        del weights[first]
    elif change == "unexpected":
        weights["decoder.more"] = torch.ones(1)
        first = "decoder.more"
    else:
        weights[first] = weights[first][:-1]
    return payload, first


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_weights_that_do_not_fit_are_named(tmp_path, change):
    payload, name = change_weights(change)
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth.*1 {change}: {name}"):
        load_model(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "geopose.models.heads.torch.load"]
)
def test_a_config_in_a_file_builds_allowed_things_only(tmp_path, target):
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["model"]["agl_head"] = {"_target_": target}
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth.*{target}"):
        load_model(tmp_path / "a.pth")


@pytest.mark.parametrize(("key", "value"), [("downsample", "two"), ("downsample", -1)])
def test_impossible_facts_in_a_file(tmp_path, key, value):
    payload = tiny_payload()
    payload["checkpoint_data"]["config"]["train"][key] = value
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(InputError, match=key):
        load_model(tmp_path / "a.pth")


def test_average_of_weights(tmp_path):
    payloads = [tiny_payload(seed) for seed in (1, 2, 3)]
    counts = [name for name in payloads[0]["model_state_dict"] if name.endswith("tracked")]
    for number, payload in enumerate(payloads):
        payload["model_state_dict"][counts[0]] = torch.tensor(7 - number)
        save_checkpoint(tmp_path / f"{number}.pth", payload)

    averaged = load_model([tmp_path / f"{number}.pth" for number in range(3)]).model.state_dict()

    for name, tensor in averaged.items():
        parts = [payload["model_state_dict"][name] for payload in payloads]
        if name in counts:
            assert torch.equal(tensor, max(parts))  # counts have no mean
        else:
            mean = torch.stack([part.double() for part in parts]).mean(0).float()
            torch.testing.assert_close(tensor, mean, rtol=1e-6, atol=1e-9)


def write_bias(path, value):
    """A tiny checkpoint with one bias set; returns its path."""
    payload = tiny_payload()
    payload["model_state_dict"]["orientation_head.orientation.3.bias"][:] = value
    save_checkpoint(path, payload)
    return path


@pytest.mark.parametrize("group_bytes", [1 << 26, 60_000])
def test_average_does_not_lose_small_differences(tmp_path, monkeypatch, group_bytes):
    """In float32 ten million plus one is lost after a few sums."""
    monkeypatch.setattr("geopose.checkpoints.weights.GROUP_BYTES", group_bytes)
    paths = [write_bias(tmp_path / f"{n}.pth", n) for n in (1.0, 1e8, -1e8)]
    mean = mean_weights(paths, "files")
    assert list(mean) == list(tiny_payload()["model_state_dict"])
    assert mean["orientation_head.orientation.3.bias"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_files_that_cannot_be_averaged(tmp_path):
    write_checkpoint(tmp_path / "a.pth")
    write_checkpoint(tmp_path / "b.pth", channel_order="bgr")
    wider = model_config()["decoder"] | {"channels": [8, 16]}
    write_checkpoint(tmp_path / "c.pth", decoder=wider)
    with pytest.raises(InputError, match="channel order"):
        load_model([tmp_path / "a.pth", tmp_path / "b.pth"])
    with pytest.raises(InputError, match="differ in network"):
        load_model([tmp_path / "a.pth", tmp_path / "c.pth"])
    payload = tiny_payload()
    payload["model_state_dict"]["decoder.more"] = torch.ones(1)
    save_checkpoint(tmp_path / "d.pth", payload)
    with pytest.raises(InputError, match=r"1 unexpected: decoder\.more"):
        load_model([tmp_path / "a.pth", tmp_path / "d.pth"])
    with pytest.raises(InputError, match=r"in one file only: decoder\.more"):
        mean_weights([tmp_path / "a.pth", tmp_path / "d.pth"], "files")


def test_safetensors_are_read_like_pth(tmp_path):
    """Weights, order of channels, what scales mean, metrics: nothing gets lost on the way."""
    payload = old_payload()
    payload["checkpoint_data"]["config"]["train"]["downsample"] = 2
    torch.save(payload, tmp_path / "old.pth")
    old = load_model(tmp_path / "old.pth")
    for name in ("new.safetensors", "new.pth"):
        write_network(tmp_path / name, old, read_facts(tmp_path / "old.pth"))
        new = load_model(tmp_path / name)
        for key, tensor in old.model.state_dict().items():
            assert torch.equal(tensor, new.model.state_dict()[key])
        assert (new.channel_order, new.downsample, new.scale_is_downsampled) == ("bgr", 2, False)
        assert new.config == old.config
        assert read_facts(tmp_path / name)["checkpoint_data"]["metrics"] == PLAIN


def test_bad_safetensors_are_one_line(tmp_path):
    loaded = load_model(write_checkpoint(tmp_path / "a.pth"))
    write_network(tmp_path / "a.safetensors", loaded, read_facts(tmp_path / "a.pth"))
    good = (tmp_path / "a.safetensors").read_bytes()
    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    contents = {
        "is empty": [b""],
        "readable": [
            good[:4],
            good[:200],
            good[:-1],
            b"\xff" * 100,
            b"\x02" + bytes(7) + b"[]",
        ],
        "does not say which network": [(tmp_path / "foreign.safetensors").read_bytes()],
    }
    for said, bad in contents.items():
        for content in bad:
            (tmp_path / "b.safetensors").write_bytes(content)
            with pytest.raises(InputError, match=rf"b\.safetensors: .*{said}") as caught:
                load_model(tmp_path / "b.safetensors")
            assert "\n" not in str(caught.value)


def memory_mb(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) // 1024


def test_optimizer_state_is_not_read_into_memory(tmp_path):
    """Neither from one file nor from three that are averaged."""
    payload = tiny_payload()
    payload["optimizer_state_dict"] = {"state": {0: {"exp_avg": torch.ones(25_000_000)}}}
    torch.save(payload, tmp_path / "a.pth")
    del payload
    load_model(tmp_path / "a.pth")  # whatever else it takes
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use so far
    load_model([tmp_path / "a.pth"] * 3)
    assert memory_mb("VmHWM") - before < 30
