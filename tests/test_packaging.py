"""What makes an installed package whole: its metadata, its configs, its commands, its extras."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import geopose
from geopose import commands, words
from geopose.checkpoints import export
from geopose.checkpoints.load import load_model, read_facts
from geopose.errors import InputError
from geopose.files import config_folder
from geopose.models import normalization
from tests.tiny_run import ENVIRONMENT, ROOT, run_interpreter, run_script

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = {
    "geopose-train": "train.py",
    "geopose-submit": "submit.py",
    "geopose-submit-ddp": "submit_ddp.py",
    "geopose-evaluate": "evaluate.py",
    "geopose-convert": "convert_j2k.py",
    "geopose-rectify": "rectify.py",
    "geopose-predict": "predict.py",
}


def _pins() -> dict[str, str]:
    """{package: version} of requirements.txt."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): pinned for name, pinned in pairs}


def _ranges() -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    return [
        Requirement(text) for text in (*project["dependencies"], *(t for e in extras for t in e))
    ]


@pytest.mark.parametrize("wanted", _ranges(), ids=lambda wanted: wanted.name)
def test_the_tested_version_is_within_the_range(wanted: Requirement) -> None:
    """Of the exact set where it names the package, else of what came with it."""
    name = canonicalize_name(wanted.name)
    assert wanted.specifier.contains(_pins().get(name) or version(name))


def test_every_pin_has_a_range_or_comes_with_a_package_that_has() -> None:
    named = {canonicalize_name(wanted.name) for wanted in _ranges()}
    assert set(_pins()) - named == {"scipy", "pandas"}  # of albumentations and toolbelt


def test_the_version_is_written_once_more_only() -> None:
    assert PROJECT["project"]["version"] == geopose.__version__


def test_a_wheel_holds_the_configs_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config_folder.config_folder() == ROOT / "configs"
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["geopose"], "force-include": {"configs": "geopose/configs"}}
    installed = tmp_path / "site-packages/geopose"
    shutil.copytree(ROOT / "configs", installed / "configs")
    monkeypatch.setattr(config_folder, "_HERE", installed)
    assert config_folder.config_folder() == installed / "configs"


def test_a_shipped_config_is_found_from_any_folder_after_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("configs/inference/sample.yaml")
    assert config_folder.shipped_or_own(name) == ROOT / name
    assert config_folder.shipped_or_own(Path("configs/none.yaml")) == Path("configs/none.yaml")
    name.parent.mkdir(parents=True)
    name.touch()
    assert config_folder.shipped_or_own(name) == name


@pytest.mark.parametrize("command", SCRIPTS)
def test_commands_and_scripts_are_the_same(command: str) -> None:
    module, _, function = PROJECT["project"]["scripts"][command].partition(":")
    assert module == commands.__name__
    assert callable(getattr(commands, function))
    script = (ROOT / SCRIPTS[command]).read_text()
    assert f"from geopose.commands import {function}\n" in script
    assert set(PROJECT["project"]["scripts"]) == set(SCRIPTS)


@pytest.mark.parametrize(
    "function", ["train", "submit", "submit_ddp", "evaluate", "convert", "rectify"]
)
def test_commands_work_outside_of_the_repository(tmp_path: Path, function: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"from geopose.commands import {function}; {function}()")
    done = run_script(program, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("function", ["submit", "submit_ddp", "predict"])
def test_help_does_not_wait_for_libraries(function: str) -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'matplotlib']))"
    program = f"{hidden}; from geopose.commands import {function}; {function}()"
    done = run_interpreter("-c", program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_help_of_checkpoints_does_not_wait_either() -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'matplotlib']))"
    program = f"{hidden}; from geopose.checkpoints.__main__ import main; main()"
    for command in ([], ["info"], ["export"], ["calibrate"], ["quantize"]):
        done = run_interpreter("-c", program, *command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: ")


def _without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.delitem(sys.modules, "geopose.checkpoints.formats.onnx_file", raising=False)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)  # an import of it fails from now on


@pytest.mark.parametrize("use", [load_model, read_facts])
def test_onnx_files_say_what_to_install(monkeypatch: pytest.MonkeyPatch, use: Any) -> None:
    _without(monkeypatch, "onnx")
    with pytest.raises(InputError, match=re.escape("a.onnx needs the package onnx")) as caught:
        use(Path("a.onnx"))
    assert "pip install 'geopose[onnx]'" in str(caught.value)


def test_everything_else_works_without_the_optional_packages() -> None:
    program = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'onnxscript', 'openvino', 'pytest'):\n"
        "    sys.modules[name] = None\n"
        "import geopose.checkpoints.command, geopose.evaluation, geopose.convert\n"
        "import geopose.inference.submission.job, geopose.inference.images.job\n"
        "assert not {'albumentations', 'sklearn'} & set(sys.modules)  # for training alone\n"
        "import geopose.training.fit\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_words_of_options_are_those_that_have_a_meaning() -> None:
    assert tuple(normalization.CHANNEL_ORDERS) == words.CHANNEL_ORDERS
    assert tuple(export.WRITERS) == words.NETWORK_SUFFIXES
