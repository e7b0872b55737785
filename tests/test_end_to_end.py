"""The whole job through the real commands: convert, train, submit, evaluate."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.tiny_data import REALDATA
from tests.tiny_run import ROOT, run_script
from tests.training_run import TINY

TILES = REALDATA / "autzen_geopose_tiles"
TRAIN, TEST = ("t01", "t02", "t05"), ("t04", "t05")


def command(cwd: Path, *arguments: object) -> str:
    """Runs one of the project's programs; returns what it printed."""
    done = run_script(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def real_data_dir(folder: Path) -> Path:
    """The tiles as a data directory; those without a .j2k are listed as the TIFF they are."""
    metadata, train, test = ["id,city,gsd"], ["id,agl,json,rgb"], ["id,rgb"]
    for split, names in (("train", TRAIN), ("test", TEST), ("truth", TEST)):
        (folder / split).mkdir(parents=True)
        for name in names:
            rgb = TILES / f"EUG_{name}_RGB.j2k"
            rgb = rgb if rgb.exists() else rgb.with_suffix(".tif")
            truth = [TILES / f"EUG_{name}_AGL.tif", TILES / f"EUG_{name}_VFLOW.json"]
            files = {"train": [rgb, *truth], "test": [rgb], "truth": truth}[split]
            for file in files:
                shutil.copyfile(file, folder / split / file.name)
            if split == "train":
                train.append(f"EUG_{name},EUG_{name}_AGL.tif,EUG_{name}_VFLOW.json,{rgb.name}")
            elif split == "test":
                test.append(f"EUG_{name},{rgb.name}")
    metadata += [f"EUG_{name},EUG,0.5" for name in sorted({*TRAIN, *TEST})]
    (folder / "metadata.csv").write_text("\n".join(metadata) + "\n")
    (folder / "geopose_train.csv").write_text("\n".join(train) + "\n")
    (folder / "geopose_test.csv").write_text("\n".join(test) + "\n")
    return folder


@pytest.mark.skipif(not TILES.is_dir(), reason="real tiles are not beside this checkout")
def test_real_tiles_go_through_the_whole_job(tmp_path: Path) -> None:
    data = real_data_dir(tmp_path / "data")
    printed = command(tmp_path, ROOT / "convert_j2k.py", "--data-dir", data, "--workers", 1)
    assert "3 converted, 0 skipped (already there), 0 failed" in printed
    command(
        tmp_path,
        ROOT / "train.py",
        *TINY,
        "train.epochs=1",
        "train.crop_size=128",
        "train.crops_per_image=2",
        f"dataset.data_dir={data}",
        "experiment=run",
    )
    config = tmp_path / "config.yaml"
    config.write_text(
        "ensemble: {tta: d4, models: [run/checkpoints_mean_r2/best.pth]}\n"
        "inference: {num_workers: 0}\nsubmission_dir: out\n"
    )
    command(tmp_path, ROOT / "submit.py", config, "--data-dir", data, "--visualize")
    with tarfile.open(tmp_path / "out" / "submission_compressed.tar.gz") as archive:
        names = sorted(archive.getnames())
    assert names == sorted(f"EUG_{n}_{kind}" for n in TEST for kind in ("AGL.tif", "VFLOW.json"))
    assert len(list((tmp_path / "out" / "visualization").glob("*_VIZ.jpg"))) == 2
    scores = tmp_path / "score.json"
    table = command(
        tmp_path, ROOT / "evaluate.py", "out/submission", data / "truth", "--json", scores
    )
    assert "EUG" in table
    result = json.loads(scores.read_text())
    assert set(result["cities"]) == {"EUG"}
    assert result["score"] == pytest.approx(result["cities"]["EUG"]["score"])


def test_sample_city_goes_through_the_whole_job_without_conversion(tmp_path: Path) -> None:
    data = tmp_path / "data"
    city = ("-m", "geopose.data.sample_city", "--out", data, "--train", 3, "--test", 1)
    printed = command(tmp_path, *city, "--size", 64, "--cities", "SYA", "SYB")
    assert "synthetic" in printed
    printed = command(
        tmp_path, ROOT / "train.py", *TINY, f"dataset.data_dir={data}", "experiment=run"
    )
    assert "convert_j2k.py" in printed  # the one warning about slow images
    command(
        tmp_path,
        ROOT / "submit_ddp.py",
        ROOT / "configs/inference/sample.yaml",
        "--nproc=2",
        f"--data-dir={data}",
        "ensemble.models=[run/checkpoints_mean_r2/best.pth]",
        "submission_dir=out",
    )
    command(tmp_path, ROOT / "evaluate.py", "out/submission", data / "test_truth")
    picture = ("--out", "preview.png", "--data-dir", data, "--truth", data / "test_truth")
    command(tmp_path, "-m", "geopose.output.compare", "--predictions", "out/submission", *picture)
    assert (tmp_path / "preview.png").stat().st_size > 10_000
