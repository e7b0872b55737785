"""The shipped inference configs parse, and name the files that a user has to get."""

import json

import pytest

from geopose.checkpoints.remote.fetch import Source
from geopose.errors import InputError
from geopose.inference.config import load_config
from tests.tiny_run import ROOT

SHIPPED = {
    "fp32_0.8910_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold89_bo1_d4": (4, "model"),
    "fp32_0.8914_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold9_bo3_d4": (9, "ensemble"),
    "fp32_0.8914_b6_rdtsc_unet_fold9_b7_unet_fold0_d4_bo1": (2, "model"),
}


def test_every_shipped_config_is_listed_here():
    files = {path.stem for path in (ROOT / "configs/inference").glob("*.yaml")}
    assert set(SHIPPED) <= files


@pytest.mark.parametrize("name", SHIPPED)
def test_published_ensembles(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    config = load_config(ROOT / f"configs/inference/{name}.yaml")

    sources = [source for entry in config.models for source in entry.sources]
    assert len({source.path for source in sources}) == SHIPPED[name][0] == len(config.models)
    assert all(source.entry.startswith("https://github.com/BloodAxe/") for source in sources)
    assert all(source.path.parent == tmp_path for source in sources)
    assert (config.tta, config.tta_mode) == ("d4", SHIPPED[name][1])
    assert config.submission_dir.name == name


HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("URL", [Source("URL")]),
        ({"checkpoint": "URL", "sha256": HASH.upper()}, [Source("URL", HASH)]),
        (
            {"average_checkpoints": ["URL", {"checkpoint": "URL", "sha256": HASH}]},
            [Source("URL"), Source("URL", HASH)],
        ),
    ],
)
def test_pinned_hashes(tmp_path, entry, expected):
    url = "https://example.org/a.pth"
    text = json.dumps({"ensemble": {"models": [entry]}, "submission_dir": "x"})
    (tmp_path / "c.yaml").write_text(text.replace("URL", url))
    found = load_config(tmp_path / "c.yaml").models[0].sources
    assert found == tuple(Source(url, source.sha256) for source in expected)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"checkpoint": "http://x/a", "sha256": "abc"}, "'abc', must be 64 hex digits"),
        ({"checkpoint": "http://x/a", "sha256": 12}, "must be 64 hex digits"),
        ({"average_checkpoints": ["http://x/a"], "sha256": HASH}, "belongs to one file"),
        (
            {"average_checkpoints": [{"checkpoint": "http://x/a", "md5": HASH}]},
            r"unknown key ensemble\.models\[0\]\.average_checkpoints\[0\]\.md5; allowed: .*sha256",
        ),
    ],
)
def test_impossible_pins(tmp_path, entry, said):
    config = {"ensemble": {"models": [entry]}, "submission_dir": "x"}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("inference.batch_size", 0, "0: must be a whole number from 1"),
        ("inference.num_workers", True, "true: must be a whole number from 0"),
        ("inference.backend", "tpu", "tpu: must be one of auto, torch, compile, openvino"),
        ("inference.precision", "fp8", "fp8: must be one of auto, fp32, tf32, bf16, fp16 or null"),
        ("inference.fp16", "maybe", "maybe: must be true or false"),
        ("inference", [1], r"\[1\]: must hold keys inference.backend, inference.batch_size"),
        ("ensemble.tta_mode", "both", "both: must be one of model, ensemble"),
        ("ensemble.models", [], r"\[\]: must be a list of at least one checkpoint"),
        ("ensemble.models", [""], r"\[0\]='': must be a path or URL"),
        ("ensemble.models", [3], r"\[0\]=3: must hold keys ensemble.models\[0\].average_check"),
        ("ensemble.models", [{"downsample": 0}], r"\[0\].downsample=0: must be a whole number"),
        ("submission_dir", None, "null: must be a folder for the predictions"),
    ],
)
def test_other_values_are_named_with_what_is_allowed(tmp_path, key, value, said):
    config = {"ensemble": {"models": ["http://x/a"]}, "submission_dir": "x"}
    section, _, name = key.rpartition(".")
    (config.setdefault(section, {}) if section else config)[name] = value
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"c.yaml: {key}=?{said}"):
        load_config(tmp_path / "c.yaml")


def test_precision_as_old_configs_spell_it(tmp_path):
    def precision(**inference):
        config = {"ensemble": {"models": ["http://x/a"]}, "submission_dir": "x"}
        (tmp_path / "c.yaml").write_text(json.dumps({**config, "inference": inference}))
        return load_config(tmp_path / "c.yaml").precision

    assert precision() == precision(fp16=False) == precision(precision=None) == "auto"
    assert precision(fp16=True) == precision(fp16=True, precision="fp16") == "fp16"
    with pytest.raises(InputError, match=r"fp16 is true and inference\.precision is bf16"):
        precision(fp16=True, precision="bf16")
