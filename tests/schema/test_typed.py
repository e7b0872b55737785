"""Paths are what was typed, on the command line and, in quotes, in YAML."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from geopose.errors import InputError
from geopose.inference.config import load_config
from geopose.schema.check import checked
from geopose.schema.typed import quoted_for_hydra
from geopose.training.config import Dataset
from tests.tiny_run import write_checkpoint

TYPED = [
    "0755", "on", "no", "1e3", "[a]", "{a}", "a: b", "run #3", "null_", "~x", "true", "007",
    "1_000", "2026-01-01", "a,b", "it's", 'say "x"', "back\\slash", "end\\", "end\\'", "=",
    "a=b", "@x", "%d", " spaced ", "ä", "*", "&a", "!b", "|", ">", "-", "0x10", "1:30", ".inf",
    "a\tb", "$HOME",
]  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "a.pth")
    path = tmp_path / "c.yaml"
    path.write_text(f"ensemble: {{models: ['{tmp_path / 'a.pth'}']}}\nsubmission_dir: out\n")
    return path


@pytest.mark.parametrize("text", TYPED)
def test_submission_dir(config: Path, text: str) -> None:
    found = load_config(config, [f"submission_dir={text}"]).submission_dir
    assert found == Path(os.path.expanduser(text))


@pytest.mark.parametrize("text", TYPED)
@pytest.mark.parametrize("key", ["experiment", "dataset.data_dir", "checkpoint"])
def test_training(key: str, text: str) -> None:
    (argument,) = quoted_for_hydra([f"{key}={text}"], (key,), is_sweep=False)
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.key_or_group == key
    assert override.value() == text


def test_null_quotes_and_sweeps_mean_what_they_did(config: Path) -> None:
    assert load_config(config, ["submission_dir='a b'"]).submission_dir == Path("a b")
    with pytest.raises(InputError, match="submission_dir"):
        load_config(config, ["submission_dir=null"])
    same = ["experiment=null", "seed=1", "--help", "experiment=", "model=b7_unet"]
    assert quoted_for_hydra(same, ("experiment",), is_sweep=False) == same
    sweep = ["experiment=a,b", "experiment=choice(a,b)"]
    assert quoted_for_hydra(sweep, ("experiment",), is_sweep=True) == sweep


@pytest.mark.parametrize("text", ["007", "no", "1e3", "[a]", "{a: b}", "0755", "1.5"])
def test_yaml_that_is_no_text(config: Path, text: str) -> None:
    config.write_text(config.read_text().replace("submission_dir: out", f"submission_dir: {text}"))
    with pytest.raises(InputError, match=r"c\.yaml: submission_dir=.*put it in quotes"):
        load_config(config)
    config.write_text(config.read_text().replace(f": {text}\n", ": " + f"'{text}'\n"))
    assert load_config(config).submission_dir == Path(text)


def test_the_schema_of_training_too() -> None:
    values = {"layout": "challenge", "fold": 0, "fold_split": "stratified", "num_folds": 10}
    with pytest.raises(InputError, match=r"data_dir=493.*put it in quotes"):
        checked(Dataset, {"data_dir": 493, **values})
