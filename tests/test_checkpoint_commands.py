"""python -m geopose.checkpoints and the fetching that submit.py does, as a user runs them."""

import hashlib
from pathlib import Path

import pytest

from geopose.checkpoints.__main__ import main
from geopose.cli import run_command
from geopose.inference.command import submit, submit_ddp
from tests.file_server import FileServer, status, whole
from tests.tiny_run import write_checkpoint, write_config, write_split


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
