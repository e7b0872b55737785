"""What `--model` means: names, configs, files; what is said where a name could mean two things."""

import logging
import os
from pathlib import Path

import pytest
import yaml

from geopose.checkpoints.remote.fetch import cached_path, file_sha256
from geopose.errors import InputError
from geopose.inference.build import load_entry
from geopose.inference.named_models import MODEL_NAMES, resolve_model
from tests.file_server import FileServer, status, whole
from tests.tiny_run import ROOT, write_checkpoint

FOLDER = ROOT / "configs/inference"
IS_DEMO = "demo: a small network trained on synthetic scenes, for demonstration"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty folder to work in."""
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


def _fill_cache(config: str) -> list[str]:
    """Puts something under the name of each file of a shipped config; its URLs."""
    urls = yaml.safe_load((FOLDER / f"{config}.yaml").read_text())["ensemble"]["models"]
    for url in urls:
        cached_path(url).parent.mkdir(exist_ok=True)
        cached_path(url).write_bytes(b"weights")
    return urls


@pytest.mark.parametrize(
    ("name", "count", "mode", "config"),
    [
        ("published-2", 2, "model", "fp32_0.8914_b6_rdtsc_unet_fold9_b7_unet_fold0_d4_bo1"),
        ("published-4", 4, "model", "fp32_0.8910_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold89_bo1_d4"),
        ("published-9", 9, "ensemble", "fp32_0.8914_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold9_bo3_d4"),
    ],
)
def test_published_names_are_the_shipped_configs(
    name: str, count: int, mode: str, config: str
) -> None:
    urls = _fill_cache(config)
    assert len(urls) == count
    found = resolve_model(name)
    assert [entry.sources[0].entry for entry in found.models] == urls
    assert (found.tta, found.tta_mode) == ("d4", mode)


def test_the_demo_is_here_and_says_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        found = resolve_model("demo")
        assert caplog.messages == [IS_DEMO]
    loaded = load_entry(found.models[0])
    assert found.models[0].files[0].stat().st_size < 12e6
    assert loaded.gsd_range_m is not None
    assert found.tta == "d4"


def test_the_document_speaks_of_the_demo_that_is_here() -> None:
    (file,) = resolve_model("demo").models[0].files
    assert f"| sha256 | `{file_sha256(file)}` |" in (ROOT / "docs/models.md").read_text()


def test_without_a_name_it_is_published_2_from_the_cache() -> None:
    urls = _fill_cache("fp32_0.8914_b6_rdtsc_unet_fold9_b7_unet_fold0_d4_bo1")
    assert [entry.sources[0].entry for entry in resolve_model(None).models] == urls


def test_without_a_name_and_a_network_the_demo_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.delenv("no_proxy")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match=r"no --model is given.*published-2.*--model demo") as seen:
        resolve_model(None)
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_name_is_the_shipped_model_and_what_lies_here_is_spoken_of(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for config in FOLDER.glob("fp32_*.yaml"):
        _fill_cache(config.stem)
    write_checkpoint(Path("a.pth"))
    os.rename("a.pth", name)
    shipped = resolve_model(name)
    assert any(f"give ./{name}" in message for message in caplog.messages)
    caplog.clear()
    own = resolve_model(f"./{name}")
    assert caplog.messages == []
    assert own.models[0].files == (Path(name),)
    assert shipped.models != own.models


def test_a_checkpoint_by_itself_gets_d4_unless_something_else_is_said() -> None:
    write_checkpoint(Path("a.pth"))
    found = resolve_model("a.pth")
    assert (found.tta, found.tta_mode, found.precision) == ("d4", "model", "auto")
    load_entry(found.models[0])
    other = resolve_model("a.pth", ["ensemble.tta=null", "inference.precision=fp32"])
    assert (other.tta, other.precision) == (None, "fp32")
    assert other.models == found.models


def test_a_config_says_its_views_and_needs_no_folder() -> None:
    write_checkpoint(Path("a.pth"))
    content = {"ensemble": {"models": ["a.pth"], "tta": "flips"}}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    assert resolve_model("mine.yaml").tta == "flips"
    assert resolve_model("mine.yaml", ["ensemble.tta=d2"]).tta == "d2"


def test_a_url_is_fetched(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    content = write_checkpoint(Path("a.pth")).read_bytes()
    with FileServer(whole(content)) as server:
        found = resolve_model(server.url("b.pth"))
    assert found.models[0].files == (cache / "b.pth",)
    assert (cache / "b.pth").read_bytes() == content
    with FileServer(status(404)) as server, pytest.raises(InputError, match="404"):
        resolve_model(server.url("c.pth"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "published-3",
            "published-3: no such model; .* published-4, published-9, demo",
        ),
        ("none.pth", "none.pth: no such model"),
        ("none.yaml", "none.yaml: no such config"),
        ("", "no such model"),
        ("http://127.0.0.1:9/a.yaml", "configs are read from files"),
    ],
)
def test_what_is_no_model_is_one_line(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        resolve_model(name)


def test_a_wrong_choice_names_the_model() -> None:
    write_checkpoint(Path("a.pth"))
    with pytest.raises(InputError, match=r"a\.pth: .*d9"):
        resolve_model("a.pth", ["ensemble.tta=d9"])
