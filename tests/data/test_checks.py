"""Tables that say something else than they seem to, and numbers in another unit, are refused."""

import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from geopose.cli import run_command
from geopose.data.checks.numbers import gsd_problem
from geopose.data.checks.truth import check_truth
from geopose.data.heights import read_agl_cm, write_agl_cm
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError
from geopose.output.archive_check import main as check
from tests.tiny_data import heights, write_data_dir
from tests.tiny_run import run_script


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_data_dir(tmp_path / "data", ["JAX", "OMA"])


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("metadata.csv", "OMA,0.5", "OMA,0,5", "row 3: 4 cells for 3 columns.*decimal comma"),
        ("metadata.csv", "OMA,0.5", "OMA,0.5,", "row 3: 4 cells for 3 columns"),
        ("metadata.csv", "OMA,0.5", 'OMA,"0,5"', "'0,5', expected metres.*a decimal point"),
        ("metadata.csv", "id,city,gsd", "id,gsd,gsd", "column gsd is there twice"),
        ("metadata.csv", "id,city,gsd", "id,city,gsd, id ", "column id is there twice"),
        ("metadata.csv", "id,city,gsd", "id;city;gsd", "separated by semicolons"),
        ("geopose_train.csv", "001,", "001,extra,", "row 3: 5 cells for 4 columns"),
        ("metadata.csv", "OMA,0.5", "OMA,50", r"50 metres per pixel.*centimetres, write 0\.5"),
        ("metadata.csv", "OMA,0.5", "OMA,1500", "1500 metres.*centimetres, write 15"),
        ("metadata.csv", "OMA,0.5", "OMA,0.0005", "kilometres, write 0.5"),
        ("metadata.csv", "OMA,0.5", "OMA,0.049", "0.049 metres per pixel, expected 0.05 to 20"),
    ],
)
def test_tables_that_do_not_say_what_they_seem_to(
    data_dir: Path, table: str, old: str, new: str, message: str
) -> None:
    path = data_dir / table
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        read_split(data_dir, "train")
    assert str(path) in str(caught.value)


def test_the_ends_of_the_range_count() -> None:
    assert gsd_problem(0.05) == gsd_problem(20.0) == ""
    assert "write metres" in gsd_problem(1e9)


def rewrite_flows(data_dir: Path, change: Callable[[dict], object]) -> list[Path]:
    paths = sorted((data_dir / "train").glob("*_VFLOW.json"))
    for path in paths:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return paths


def rewrite_heights(data_dir: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (data_dir / "train").glob("*_AGL.tif"):
        agl_cm = read_agl_cm(path)
        known = agl_cm < 65535
        agl_cm[known] = change(agl_cm[known].astype(float)).clip(0, 65534).astype(np.uint16)
        tifffile.imwrite(path, agl_cm, metadata=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flow: None, "expected"),
        (lambda flow: {**flow, "scale": None}, "'scale' is None"),
        (lambda flow: {**flow, "angle": float("nan")}, "'angle' is nan"),
        (lambda flow: {**flow, "scale": "0,02"}, "'scale' is 0,02"),
        (lambda flow: {**flow, "scale": flow["scale"] * 100}, "px per metre, write 0.01"),
        (lambda flow: {**flow, "scale": flow["scale"] / 100}, "100 times those would fit"),
        (lambda flow: {**flow, "angle": 135.0}, r"degrees, write 2\.3562"),
    ],
)
def test_flows_in_no_or_another_unit(
    data_dir: Path, change: Callable[[dict], object], message: str
) -> None:
    rewrite_flows(data_dir, change)
    with pytest.raises(InputError, match=message):
        check_truth(read_split(data_dir, "train"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cm: cm / 100, "100 times these would fit: perhaps they are metres"),
        (lambda cm: cm * 10, "perhaps these are millimetres"),
        (lambda cm: cm * 100, "100 times too large"),
        (lambda cm: cm + 20_000, "above the sea"),
    ],
)
def test_heights_in_another_unit(
    data_dir: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    check_truth(read_split(data_dir, "train"))
    rewrite_heights(data_dir, change)
    with pytest.raises(InputError, match=f"in 2 height maps looked at .*{message}"):
        check_truth(read_split(data_dir, "train"))


def test_flat_ground_and_views_from_above_are_sound(data_dir: Path) -> None:
    rewrite_flows(data_dir, lambda flow: {**flow, "scale": 0.0})
    rewrite_heights(data_dir, lambda cm: cm * 0)
    check_truth(read_split(data_dir, "train"))


def test_unknown_heights_are_mentioned(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = data_dir / "train/OMA_001_AGL.tif"
    write_agl_cm(path, np.full((64, 64), np.nan), allow_nodata=True)
    with caplog.at_level(logging.WARNING):
        check_truth(read_split(data_dir, "train"))
    assert "1 of 2 height maps looked at know no height at all" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("change", [lambda flow: None, lambda flow: {**flow, "angle": 200}])
def test_train_finds_it_before_it_begins(data_dir: Path, change: Callable[[dict], object]) -> None:
    bad = rewrite_flows(data_dir, change)[0]
    run = run_script(
        "train.py", "model=sample_unet", "train=sample", "dataset.num_folds=2",
        f"dataset.data_dir={data_dir}", f"experiment={data_dir.parent / 'run'}",
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1].startswith(f"error: {bad}: ")
    assert not (data_dir.parent / "run").exists()


@pytest.fixture
def members(data_dir: Path) -> dict[str, bytes]:
    """What a sound archive of two test images holds."""
    rows = ["id,rgb"]
    for path in sorted((data_dir / "train").glob("*.j2k")):
        (data_dir / "test" / path.name).write_bytes(path.read_bytes())
        rows.append(f"{path.name[4:7]},{path.name}")
    (data_dir / "geopose_test.csv").write_text("\n".join(rows) + "\n")
    content = {}
    for number, name in enumerate(("JAX_000", "OMA_001")):
        path = data_dir.parent / "x_AGL.tif"
        write_agl_cm(path, np.nan_to_num(heights(64, 64, number)))
        content[f"{name}_AGL.tif"] = path.read_bytes()
        content[f"{name}_VFLOW.json"] = b'{"scale": 0.01, "angle": 1.5}'
    return content


def pack(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tif(agl_m: np.ndarray, tmp_path: Path) -> bytes:
    write_agl_cm(tmp_path / "y.tif", agl_m, allow_nodata=True)
    return (tmp_path / "y.tif").read_bytes()


def test_archives_are_checked(
    data_dir: Path, tmp_path: Path, members: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    sound = list(members.items())
    other = np.nan_to_num(heights(64, 64))
    first, flow = "JAX_000_AGL.tif", "OMA_001_VFLOW.json"
    cases = {
        "": sound,
        "JAX_000_AGL.tif is there twice": [*sound, sound[0]],
        "1 of 4 files are missing: OMA_001_VFLOW.json": sound[:-1],
        "'notes.txt' belongs to no image": [*sound, ("notes.txt", b"")],
        "belongs to no image; remove": [("submission/" + n, c) for n, c in sound],
        f"{first}: 64 x 60 pixels, the image has 64 x 64": {
            **members, first: tif(other[:60], tmp_path)}.items(),
        f"{first}: 64 pixels are no data": {
            **members, first: tif(heights(64, 64), tmp_path)}.items(),
        f"{first}: not a TIFF file": {**members, first: b"GIF89a"}.items(),
        f"{flow}: 'scale' is None": {**members, flow: b'{"scale": null, "angle": 1}'}.items(),
        f"{flow}: 'angle' is inf": {**members, flow: b'{"scale": 1e-2, "angle": 1e999}'}.items(),
        f"{flow}: angle is 90, expected radians": {
            **members, flow: b'{"scale": 0.01, "angle": 90}'}.items(),
        f"{flow}: scale is 0.5 px per cm": {
            **members, flow: b'{"scale": 0.5, "angle": 1}'}.items(),
        "perhaps they are metres": {
            n: tif(other / 100, tmp_path) if n.endswith("tif") else c for n, c in sound}.items(),
    }  # fmt: skip
    for message, content in cases.items():
        path = pack(tmp_path / "a.tar.gz", list(content))
        status = run_command(check, ["check", str(path), "--data-dir", str(data_dir)])
        output = capfd.readouterr()
        assert message in output.err, (message, output.err)
        assert status == (2 if message else 0)
        assert len(output.err.splitlines()) == bool(message)
    path.write_bytes(path.read_bytes()[:-30])
    assert run_command(check, ["check", str(path), "--data-dir", str(data_dir)]) == 2
    assert "not a readable .tar.gz" in capfd.readouterr().err


def test_the_command_is_there(data_dir: Path, tmp_path: Path, members: dict[str, bytes]) -> None:
    path = pack(tmp_path / "a.tar.gz", list(members.items()))
    run = run_script("-m", "geopose.output.archive", "check", path, "--data-dir", data_dir)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{path}: sound, 2 images\n"
