"""What a rerun keeps, what it does again, and what a broken run leaves behind."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch

from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.rgb import write_png
from geopose.data.vflow import read_vflow
from geopose.files import lock, stamp
from geopose.inference import dry_run
from geopose.inference.pipeline.progress import PART
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.submission import leader, tasks
from geopose.inference.submission.command import submit
from geopose.inference.workers.coordinator import Coordinator
from tests.tiny_run import ROOT, write_checkpoint, write_config, write_split

SIZES = ((40, 48), (40, 48), (32, 32), (48, 40), (40, 48), (32, 32))
NAMES = [f"ABC_{number:03d}" for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Data, a checkpoint and the folder of a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    write_split(folder / "data", SIZES)
    write_checkpoint(folder / "a.pth", seed=1)
    config = write_config(folder / "c.yaml", [folder / "a.pth"])
    assert run_command(submit, [str(config), "--data-dir", str(folder / "data")]) == 0
    return folder


@pytest.fixture
def job(finished, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(finished, tmp_path / "job")
    write_config(tmp_path / "job/c.yaml", [tmp_path / "job/a.pth"])
    return Job(tmp_path / "job")


HOLD = """
import sys
from pathlib import Path
from geopose.files.lock import FolderLock
claim = FolderLock(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""


class Job:
    """Runs submit.py on a folder and tells what it did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.archive = self.out / "submission_compressed.tar.gz"

    def run(self, *more: str) -> int:
        arguments = [str(self.folder / "c.yaml"), "--data-dir", str(self.folder / "data"), *more]
        return run_command(submit, arguments)

    def tif(self, name: str) -> Path:
        return self.out / "submission" / f"{name}_AGL.tif"

    def vflow(self, name: str) -> Path:
        return self.out / "submission" / f"{name}_VFLOW.json"

    def state(self) -> dict[str, tuple[int, int]]:
        """What tells whether a file was written again, by image."""
        stats = {name: self.tif(name).stat() for name in NAMES if self.tif(name).exists()}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}

    def redone(self, *more: str) -> set[str]:
        """The images that a run, which must succeed, does again."""
        before = self.state()
        assert self.run(*more) == 0
        return {name for name, state in self.state().items() if before.get(name) != state}

    def content(self) -> dict[str, bytes]:
        """What the archive holds."""
        with tarfile.open(self.archive) as archive:
            return {m.name: archive.extractfile(m).read() for m in archive}


def flip_a_byte(path: Path) -> None:
    """Damage that neither the size nor the time of the file shows."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def only_predictions(path: Path) -> stamp.FileStamp:
    """In place of `FileStamp.of_file`, where no image may be read."""
    assert not path.name.endswith("_RGB.png")
    return stamp.FileStamp.of_bytes(path.read_bytes())


def test_a_finished_run_is_kept_as_it_is(job, caplog, monkeypatch):
    monkeypatch.setattr(leader, "build_ensemble", lambda *_: pytest.fail("loaded the models"))
    archive = job.archive.stat()
    with caplog.at_level("INFO"):
        assert job.redone() == set()
    assert "6 of 6 images are finished and kept" in caplog.text
    assert "archive kept" in caplog.text
    assert (job.archive.stat().st_ino, job.archive.stat().st_mtime_ns) == (
        archive.st_ino,
        archive.st_mtime_ns,
    )


DAMAGE = {
    "truncated": lambda job: os.truncate(job.tif("ABC_003"), 100),
    "empty": lambda job: os.truncate(job.tif("ABC_003"), 0),
    "flipped": lambda job: flip_a_byte(job.tif("ABC_003")),
    "removed": lambda job: job.tif("ABC_003").unlink(),
    "no flow": lambda job: job.vflow("ABC_003").unlink(),
    "flow edited": lambda job: job.vflow("ABC_003").write_text('{"scale": 1, "angle": 1}'),
    "flow of another": lambda job: shutil.copy(job.vflow("ABC_002"), job.vflow("ABC_003")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_only_what_is_damaged_is_done_again(job, caplog, damage):
    archive = job.archive.read_bytes()
    DAMAGE[damage](job)
    with caplog.at_level("INFO"):
        assert job.redone() <= {"ABC_003"}
    assert "5 of 6 images are finished and kept; 1 to do: 1 whose files" in caplog.text
    assert job.archive.read_bytes() == archive


def test_a_damaged_archive_is_made_anew_from_what_is_kept(job):
    archive = job.archive.read_bytes()
    flip_a_byte(job.archive)
    assert job.redone() == set()
    assert job.archive.read_bytes() == archive


def test_other_settings_never_share_an_archive(job, caplog, tmp_path):
    with caplog.at_level("INFO"):
        assert job.redone("ensemble.tta=d4") == set(NAMES)
    assert "6 made with other settings (tta null -> d4)" in caplog.text
    found = job.content()
    assert job.redone("ensemble.tta=d4", "--force") == set(NAMES)
    assert job.content() == found


def test_a_run_with_other_settings_that_breaks_leaves_no_archive(job, monkeypatch):
    """Half of the old predictions are replaced; going back replaces just those."""
    archive = job.archive.read_bytes()
    fail_to_write(monkeypatch, at=4)
    assert job.run("ensemble.tta=d4") == 1
    assert not job.archive.exists()
    monkeypatch.undo()
    redone = job.redone()
    assert 3 <= len(redone) < len(NAMES)
    assert job.archive.read_bytes() == archive


def test_another_checkpoint_under_the_same_name(job, caplog):
    before = job.content()
    write_checkpoint(job.folder / "a.pth", seed=2)
    with caplog.at_level("INFO"):
        assert job.redone() == set(NAMES)
    assert "made with other settings (sha256 of model 1" in caplog.text
    assert job.content() != before


def test_the_same_checkpoint_under_another_name(job):
    (job.folder / "a.pth").rename(job.folder / "b.pth")
    assert job.redone(f"ensemble.models=[{job.folder}/b.pth]") == set()


def test_changed_images_are_done_again(job):
    """One image has other pixels, one another ground sampling, one only another date."""
    images = job.folder / "data/test"
    write_png(images / "ABC_000_RGB.png", np.full((*SIZES[0], 3), 77, np.uint8))
    os.utime(images / "ABC_002_RGB.png")
    metadata = job.folder / "data/metadata.csv"
    metadata.write_text(metadata.read_text().replace("ABC_004,ABC,0.70", "ABC_004,ABC,0.75"))
    assert job.redone() == {"ABC_000", "ABC_004"}


def test_an_image_replaced_under_its_old_size_and_time_is_not_kept(job, capfd):
    path = next((job.folder / "data/test").glob("ABC_*.png"))
    flip_a_byte(path)
    assert job.run() == 1
    error = capfd.readouterr().err
    assert "1 whose image has changed" in error or "1 of 6 images failed" in error
    assert path.name in error


def test_a_copied_image_is_read_once_and_then_known(job, monkeypatch):
    for path in (job.folder / "data/test").glob("*.png"):
        os.utime(path)
    assert job.redone() == set()
    monkeypatch.setattr(stamp.FileStamp, "of_file", staticmethod(only_predictions))
    assert job.redone() == set()


def test_the_archive_holds_the_images_listed_now(job):
    table = job.folder / "data/geopose_test.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join(rows[:4]) + "\n")
    assert job.redone() == set()
    assert len(job.content()) == 2 * 3
    table.write_text("\n".join(rows) + "\n")
    assert job.redone() == set()
    assert len(job.content()) == 2 * 6


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_predictions_that_nothing_vouches_for_are_done_again(job, manifest, caplog):
    path = job.out / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    assert job.redone() == set(NAMES)
    assert ("manifest.json cannot be used" in caplog.text) == (manifest is not None)


def test_force_starts_over(job):
    assert job.redone("--force") == set(NAMES)


def test_pictures_are_added_without_predicting_again(job, monkeypatch):
    monkeypatch.setattr(leader, "build_ensemble", lambda *_: pytest.fail("loaded the models"))
    archive = job.archive.stat()
    assert job.redone("--visualize") == set()
    pictures = job.out / "visualization"
    assert len(list(pictures.iterdir())) == len(NAMES)
    assert job.archive.stat().st_mtime_ns == archive.st_mtime_ns
    (pictures / "ABC_001_VIZ.jpg").unlink()
    before = {path: path.stat().st_mtime_ns for path in pictures.iterdir()}
    assert job.redone("--visualize") == set()
    after = {path: path.stat().st_mtime_ns for path in pictures.iterdir()}
    assert {path.name for path in after if path not in before} == {"ABC_001_VIZ.jpg"}
    assert {path: after[path] for path in before} == before


def test_a_picture_never_shows_an_earlier_prediction(job):
    assert job.run("--visualize") == 0
    os.truncate(job.tif("ABC_003"), 100)
    assert job.run() == 0
    pictures = {path.name[:7] for path in (job.out / "visualization").iterdir()}
    assert pictures == set(NAMES) - {"ABC_003"}


def fail_to_write(monkeypatch, at: int) -> None:
    """The disk is full when the `at`-th height map is written."""
    write, calls = tifffile.imwrite, 0

    def full(path, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls >= at:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *arguments, **options)

    monkeypatch.setattr("geopose.data.heights.tifffile.imwrite", full)


def assert_only_whole_files(job: Job) -> set[str]:
    """The finished images, after making sure that nothing else is there."""
    files = {path.name for path in (job.out / "submission").iterdir()}
    names = {name[:7] for name in files}
    for name in names:
        read_agl_m(job.tif(name))
        read_vflow(job.vflow(name))
    assert files == {f"{name}_{kind}" for name in names for kind in ("AGL.tif", "VFLOW.json")}
    assert not job.archive.exists()
    return names


def test_a_full_disk_stops_the_run_and_nothing_finished_is_lost(job, monkeypatch, capsys):
    archive = job.archive.read_bytes()
    shutil.rmtree(job.out)
    fail_to_write(monkeypatch, at=3)
    assert job.run() == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"error: cannot write .*_AGL.tif: No space left on device; ", error)
    assert "4 of 6 images are missing" in error
    assert len(assert_only_whole_files(job)) == 2
    monkeypatch.undo()
    assert len(job.redone()) == 4
    assert job.archive.read_bytes() == archive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_whole_files(job, monkeypatch, caplog, number):
    archive = job.archive.read_bytes()
    shutil.rmtree(job.out)
    forward, calls = PoseEnsemble.forward, 0

    def interrupted(*inputs):
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(number)
        return forward(*inputs)

    monkeypatch.setattr(PoseEnsemble, "forward", interrupted)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    if number == signal.SIGINT:
        assert job.run() == 130
    else:
        with pytest.raises(SystemExit, match="143"):
            job.run("inference.num_workers=1")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert "run again to go on" in caplog.text
    finished = assert_only_whole_files(job)
    monkeypatch.undo()
    assert job.redone() == set(NAMES) - finished
    assert job.archive.read_bytes() == archive


def test_a_line_that_a_crash_cut_off_is_no_record(job):
    """Two images were noted, the second line is half written; a third one has files but no line."""
    manifest = json.loads((job.out / "manifest.json").read_text())
    records = {name: manifest["images"].pop(f"{name}_RGB.j2k") for name in NAMES[:3]}
    (job.out / "manifest.json").write_text(json.dumps(manifest))
    lines = [json.dumps({"image": f"{n}_RGB.j2k", **records[n]}) for n in NAMES[:2]]
    journal = job.out / "manifest.process-1.jsonl"
    journal.write_text(lines[0] + "\n" + lines[1][:-20])
    assert job.redone() == {NAMES[1], NAMES[2]}
    assert not journal.exists()


def test_leftovers_of_a_killed_run_are_removed(job):
    for folder in (job.out, job.out / "submission"):
        (folder / ".x.partial-0123abcd.tif").write_bytes(b"half")
    assert job.redone() == set()
    assert not list(job.out.rglob(".*"))


def test_a_decoding_process_that_is_killed_is_said(job, monkeypatch, capsys):
    shutil.rmtree(job.out)
    monkeypatch.setattr(tasks, "open_image", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert job.run("inference.num_workers=1") == 1
    assert "a process that decodes images was killed" in capsys.readouterr().err.splitlines()[-1]


def test_dry_run_tells_and_writes_nothing(job, caplog):
    os.truncate(job.tif("ABC_003"), 100)
    job.tif("ABC_004").unlink()
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    with caplog.at_level("INFO"):
        assert job.run("--dry-run") == 0
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == before
    for expected in (
        "4 of 6 images are finished and kept; 2 to do",
        "1 images: 40 x 48 px",
        "1 images: 48 x 40 px",
        "1 models, tta null",
        "a.pth: tiny, 0.1 M parameters",
        "for all with 1 process",
        "memory of each process: ",
    ):
        assert expected in caplog.text


@pytest.mark.parametrize("broken", [0, 1])
def test_progress_counts_every_view_and_ends_with_whole_images(job, monkeypatch, broken):
    counted, advance = [], Coordinator.advance
    monkeypatch.setattr(
        Coordinator,
        "advance",
        lambda coordinator, parts: counted.append(parts) or advance(coordinator, parts),
    )
    for name in NAMES[:broken]:
        os.truncate(job.folder / f"data/test/{name}_RGB.png", 100)
    assert job.run("--force", "ensemble.tta=d4", "inference.batch_size=2") == broken
    assert sum(counted) == len(NAMES) * PART
    steps = [parts for parts in counted if parts <= 2 * PART / 9]
    assert len(steps) == len(counted) - broken
    assert len(steps) > len(NAMES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU all views are tried")
def test_dry_run_on_a_cpu_tries_one_view_and_reckons_with_all(job, caplog, monkeypatch):
    shown = []
    run = Member._run
    monkeypatch.setattr(Member, "_run", lambda *args: shown.append(args[1].shape) or run(*args))
    clock = iter((0.0, 10.0))
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with caplog.at_level("INFO"):
        assert job.run("--force", "--dry-run", "ensemble.tta=d4", "inference.batch_size=3") == 0
    assert [shape[0] for shape in shown] == [1]
    pixels = sum(height * width for height, width in SIZES)
    largest = shown[0][-2] * shown[0][-1]
    total = timedelta(seconds=round(8 * 10.0 * pixels / largest))
    assert "one view of " in caplog.text
    assert f"; about {total} for all with 1 process" in caplog.text


def test_dry_run_on_a_gpu_counts_its_warm_up_once(monkeypatch):
    clock = iter((0.0, 60.0, 60.0, 62.0))
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(dry_run, "DeviceCopy", lambda device: None)
    monkeypatch.setattr(dry_run, "predict", lambda *_: lambda: [])
    assert dry_run._timed(None, torch.device("cuda"), [None] * 4, 0.5) == (60.0, 0.5)


def test_dry_run_finds_what_would_stop_the_run(job, capsys):
    (job.folder / "a.pth").write_bytes(b"garbage")
    assert job.run("--dry-run") == 2
    assert "not a readable checkpoint" in capsys.readouterr().err


def test_a_run_says_how_long_the_models_waited(job, caplog):
    with caplog.at_level("INFO"):
        assert job.run("--force", "inference.num_workers=1") == 0
    said = re.search(
        r"6 images in [\d.]+ s \([\d.]+ s each, (?:fp32|tf32), 1 process on \w+\); "
        r"the models waited ([\d.]+) % of the time for input, ([\d.]+) % for output",
        caplog.text,
    )
    assert 0 <= float(said[1]) + float(said[2]) <= 100


def test_a_second_run_in_a_folder_is_kept_out(job):
    """And lets the files of the first one be; a run that was killed keeps nobody out."""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(job.out)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout.readline() == b"claimed\n"
    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    assert job.run("--force") == 2
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before
    first.kill()
    first.wait()
    assert job.redone("--force") == set(NAMES)
    assert not (job.out / lock.NAME).exists()
