"""python -m geopose.checkpoints and the fetching that submit.py does, as a user runs them."""

import hashlib
from pathlib import Path

import pytest
import torch

from geopose.checkpoints.__main__ import main
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.inference.submission.command import submit, submit_ddp
from geopose.models.build import build_model
from geopose.training.initial_weights import apply_initial_weights
from tests.file_server import FileServer, status, whole
from tests.tiny_run import (
    model_config,
    tiny_payload,
    write_checkpoint,
    write_config,
    write_split,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("setup") / "a.pth", seed=1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_fetch_prepares_a_machine(tmp_path, cache, checkpoint, capsys):
    with FileServer(whole(checkpoint.read_bytes())) as server:
        models = [checkpoint, server.url("b.pth"), {"average_checkpoints": [server.url("c.pth")]}]
        config = write_config(tmp_path / "c.yaml", models)
        assert run_command(main, ["fetch", str(config), server.url("d.pth")]) == 0
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    paths = [checkpoint, cache / "b.pth", cache / "c.pth", cache / "d.pth"]
    assert printed == [[sha256(checkpoint), str(path)] for path in paths]
    assert run_command(main, ["fetch", str(config)]) == 0  # offline now: the server is gone


def test_submit_fetches_its_models(tmp_path, cache, checkpoint, capsys):
    data = write_split(tmp_path / "data", [(64, 64)])
    with FileServer(whole(checkpoint.read_bytes())) as server:
        pinned = {"checkpoint": server.url("b.pth"), "sha256": sha256(checkpoint)}
        config = write_config(tmp_path / "c.yaml", [server.url("a.pth"), pinned])
        assert run_command(submit, [str(config), "--data-dir", str(data)]) == 0
        assert len(server.requests) == 2
    assert (tmp_path / "out/submission_compressed.tar.gz").is_file()
    more = [f"submission_dir={tmp_path}/two", "--nproc", "1"]
    assert run_command(submit_ddp, [str(config), "--data-dir", str(data), *more]) == 0


def test_nothing_is_fetched_for_a_run_that_cannot_start(tmp_path, cache, checkpoint, capsys):
    with FileServer(whole(checkpoint.read_bytes())) as server:
        config = write_config(tmp_path / "c.yaml", [server.url("a.pth")])
        assert run_command(submit, [str(config), "--data-dir", str(tmp_path / "none")]) == 2
        assert not server.requests


@pytest.mark.parametrize("command", ["fetch", "submit"])
def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys, command):
    data = write_split(tmp_path / "data", [(64, 64)])
    with FileServer(status(404)) as server:
        config = str(write_config(tmp_path / "c.yaml", [server.url("a.pth")]))
        if command == "fetch":
            assert run_command(main, ["fetch", config]) == 2
        else:
            assert run_command(submit, [config, "--data-dir", str(data)]) == 2
    assert "/a.pth: the server answers 404 Not Found" in one_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["fetch"], ["fetch", "none.yaml"], ["steal", "x"]])
def test_bad_arguments_are_one_line(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(run_command(main, arguments))
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of one network, with metrics and a fold."""
    folder = tmp_path_factory.mktemp("two")
    for seed in (1, 2):
        payload = tiny_payload(seed)
        payload["checkpoint_data"]["config"]["dataset"] = {"fold": 9}
        payload["checkpoint_data"]["metrics"] = {"valid": {"metrics/mean_r2": 0.75}}
        save_checkpoint(folder / f"{seed}.pth", payload)
    return [folder / "1.pth", folder / "2.pth"]


def test_info_says_what_a_file_is(two, capsys):
    assert run_command(main, ["info", *map(str, two)]) == 0
    said = capsys.readouterr().out
    parameters = sum(p.numel() for p in load_model(two[0]).model.parameters())
    for line in (
        str(two[0]), "slug: tiny", "fold: 9", "epoch: 3", "metrics: valid/metrics/mean_r2 0.75",
        f"parameters: {parameters:,}", "channel order: rgb", "downsample: 1",
        f"sha256: {sha256(two[1])}",
        "architecture: TimmEncoder test_efficientnet; unet bilinear [8, 12]; AGLHead; "
        "BasicOrientationHead",
    ):  # fmt: skip
        assert line in " ".join(said.split())
    assert torch.__version__ in said


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_average_is_what_a_config_averages(tmp_path, two, capsys, suffix):
    out = tmp_path / f"mean{suffix}"
    assert run_command(main, ["average", *map(str, two), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{sha256(out)}  {out}\n"
    expected = load_model(two).model.state_dict()
    for name, tensor in load_model(out).model.state_dict().items():
        assert torch.equal(tensor, expected[name])

    assert run_command(main, ["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert "averaged from:  1.pth, 2.pth" in said
    assert "epoch" not in said

    assert run_command(main, ["average", *map(str, two), "-o", str(out)]) == 2
    assert "is there already; give another name, or --force" in one_error(capsys)
    assert run_command(main, ["average", *map(str, two), "-o", str(out), "--force"]) == 0


def test_export_keeps_everything_but_the_training_state(tmp_path, two, capsys):
    assert run_command(main, ["info", str(two[0])]) == 0
    before = capsys.readouterr().out.splitlines()[1:-1]
    out = tmp_path / "a.safetensors"
    assert run_command(main, ["export", str(two[0]), str(out)]) == 0
    assert run_command(main, ["info", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[2:-1] == before


def test_the_demo_goes_by_its_name_wherever_a_file_does(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["info", "demo"]) == 0
    printed = capsys.readouterr().out
    assert "demo.pth" in printed.splitlines()[0]
    assert "sample_unet" in printed
    assert run_command(main, ["export", "demo", "mine.safetensors"]) == 0
    data = write_split(tmp_path / "data", [(64, 64)])
    config = write_config(tmp_path / "c.yaml", ["demo", "mine.safetensors"])
    assert run_command(submit, [str(config), "--data-dir", str(data)]) == 0
    assert run_command(main, ["info", "demos"]) == 2
    assert "demos: no such checkpoint file" in one_error(capsys)


def test_submit_and_training_take_safetensors(tmp_path, two):
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for source, path in zip(two, paths, strict=True):
        assert run_command(main, ["export", str(source), str(path)]) == 0
    data = write_split(tmp_path / "data", [(64, 64)])
    archives = []
    for name, models in (("pth", two), ("safetensors", paths)):
        (tmp_path / name).mkdir()
        average = {"average_checkpoints": [str(path) for path in models]}
        config = write_config(tmp_path / name / "c.yaml", [models[0], average])
        assert run_command(submit, [str(config), "--data-dir", str(data)]) == 0
        archives.append((tmp_path / name / "out/submission_compressed.tar.gz").read_bytes())
    assert archives[0] == archives[1]
    model = build_model(model_config(), load_pretrained=False)
    nothing = {"checkpoint": None, "transfer_encoder_decoder": None, "transfer": None}
    for key in nothing:
        cfg = {**nothing, key: str(paths[0]), "model": model_config()}
        apply_initial_weights(model, cfg)
    expected = load_model(two[0]).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["average", "A", "-o", "OUT.pth"], "at least two"),
        (["average", "A", "B", "-o", "OUT.txt"], "must end with .pth or .safetensors"),
        (["export", "A", "OUT"], "must end with"),
        (["export", "A", "A/x.pth"], "not a directory"),
        (["export", "none.pth", "OUT.pth"], "none.pth: no such checkpoint"),
        (["info", "none.pth"], "none.pth: no such checkpoint"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, two, capsys, arguments, said):
    places = {"OUT": tmp_path / "out", "A": two[0], "B": two[1]}
    for word, path in places.items():
        arguments = [a.replace(word, str(path), 1) if a.startswith(word) else a for a in arguments]
    assert run_command(main, arguments) == 2
    assert said in one_error(capsys)
    assert not list(tmp_path.iterdir())
