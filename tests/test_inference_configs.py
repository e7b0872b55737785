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
        ({"average_checkpoints": [{"checkpoint": "http://x/a", "md5": HASH}]}, "paths or URLs"),
    ],
)
def test_impossible_pins(tmp_path, entry, said):
    config = {"ensemble": {"models": [entry]}, "submission_dir": "x"}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        load_config(tmp_path / "c.yaml")
