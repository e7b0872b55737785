"""submit.py as a user runs it: images in, archive out, and every way in which that must fail."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from geopose.checkpoints.load import load_model
from geopose.cli import run_command
from geopose.data.heights import read_agl_m
from geopose.data.rgb import read_rgb, write_png
from geopose.data.vflow import read_vflow
from geopose.inference.submission.command import submit
from geopose.models.normalization import normalize_image
from tests.tiny_run import SIZES, tiny_payload, write_checkpoint, write_config, write_split

NAMES = [f"ABC_{number:03d}" for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Data and two checkpoints that no test changes."""
    folder = tmp_path_factory.mktemp("setup")
    write_split(folder / "data")
    write_checkpoint(folder / "a.pth", seed=1)
    write_checkpoint(folder / "b.pth", seed=2, channel_order="bgr")
    return folder


def run(config: Path, data: Path, *more: str) -> int:
    return run_command(submit, [str(config), "--data-dir", str(data), *more])


def poses(out: Path) -> dict[str, tuple[np.ndarray, float, float]]:
    folder = out / "submission"
    return {
        name: (read_agl_m(folder / f"{name}_AGL.tif"), *read_vflow(folder / f"{name}_VFLOW.json"))
        for name in NAMES
    }


def assert_same(found, expected, agl_m: float = 0.0101) -> None:
    for name in NAMES:
        np.testing.assert_allclose(found[name][0], expected[name][0], atol=agl_m)
        np.testing.assert_allclose(found[name][1:], expected[name][1:], rtol=1e-4)


def test_output_is_what_the_challenge_wants(setup, tmp_path):
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])

    assert run(config, setup / "data") == 0

    files = sorted(path.name for path in (tmp_path / "out/submission").iterdir())
    assert files == sorted(f"{n}_{kind}" for n in NAMES for kind in ("AGL.tif", "VFLOW.json"))
    with tarfile.open(tmp_path / "out/submission_compressed.tar.gz", "r:gz") as archive:
        assert archive.getnames() == files
        for name in files:
            inside = archive.extractfile(name).read()
            assert inside == (tmp_path / "out/submission" / name).read_bytes()
    for name, size in zip(NAMES, SIZES, strict=True):
        with tifffile.TiffFile(tmp_path / f"out/submission/{name}_AGL.tif") as tiff:
            assert len(tiff.pages) == 1
            assert tiff.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert tiff.pages[0].dtype == np.uint16
            assert tiff.pages[0].shape == size
        flow = json.loads((tmp_path / f"out/submission/{name}_VFLOW.json").read_text())
        assert set(flow) == {"scale", "angle"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "submission",
        "submission_compressed.tar.gz",
    ]


def test_files_hold_what_the_model_says(setup, tmp_path):
    """The model called by hand on an image of odd size, in the checkpoint's own channel order."""
    for checkpoint in ("a.pth", "b.pth"):
        config = write_config(tmp_path / "c.yaml", [setup / checkpoint])
        assert run(config, setup / "data") == 0
        loaded = load_model(setup / checkpoint)
        rgb = read_rgb(setup / "data/test/ABC_000_RGB.png")
        with torch.inference_mode():
            output = loaded.model(
                normalize_image(rgb, loaded.channel_order)[None], torch.tensor([[0.3]])
            )
        agl_m, scale, angle = poses(tmp_path / "out")["ABC_000"]
        expected = output["OUTPUT_AGL_MASK"][0, 0].numpy()
        assert expected.std() > 0.02  # a flat map would prove nothing
        np.testing.assert_allclose(agl_m, expected, atol=0.0051)
        assert scale == pytest.approx(output["OUTPUT_VFLOW_SCALE"].item(), rel=1e-4)
        assert angle == pytest.approx(output["OUTPUT_VFLOW_ANGLE"].item(), rel=1e-4)


def test_batches_and_workers_change_nothing(setup, tmp_path):
    models = [setup / "a.pth", setup / "b.pth"]
    for name, inference in (("one", {}), ("three", {"batch_size": 3, "num_workers": 2})):
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name / "c.yaml", models, **inference)
        assert run(config, setup / "data", "ensemble.tta=d4") == 0
    assert_same(poses(tmp_path / "one/out"), poses(tmp_path / "three/out"))


def test_an_ensemble_averages_heights_scales_and_directions(setup, tmp_path):
    found = {}
    for name, models in {"a": ["a.pth"], "b": ["b.pth"], "ab": ["a.pth", "b.pth"]}.items():
        (tmp_path / name).mkdir()
        config = write_config(tmp_path / name / "c.yaml", [setup / model for model in models])
        assert run(config, setup / "data") == 0
        found[name] = poses(tmp_path / name / "out")
    for name in NAMES:
        (agl_a, scale_a, angle_a), (agl_b, scale_b, angle_b) = found["a"][name], found["b"][name]
        agl_m, scale, angle = found["ab"][name]
        np.testing.assert_allclose(agl_m, (agl_a + agl_b) / 2, atol=0.011)
        assert scale == pytest.approx((scale_a + scale_b) / 2, rel=1e-4)
        mean = np.exp(1j * angle_a) + np.exp(1j * angle_b)
        assert np.exp(1j * angle) == pytest.approx(mean / abs(mean), abs=1e-4)


def test_arguments_override_the_config(setup, tmp_path):
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    assert run(config, setup / "data", f"submission_dir={tmp_path}/plain", "ensemble.tta=null") == 0
    arguments = [
        f"submission_dir={tmp_path}/d4",
        "ensemble.tta=d4",
        "inference.batch_size=2",
        f"ensemble.models=[{setup}/b.pth]",
    ]
    assert run(config, setup / "data", *arguments) == 0

    assert not (tmp_path / "out").exists()
    plain, d4 = poses(tmp_path / "plain"), poses(tmp_path / "d4")
    assert not np.allclose(plain["ABC_000"][0], d4["ABC_000"][0], atol=0.02)


def test_several_configs_run_in_turn_with_the_variable_set(setup, tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVENDATA_OVERHEAD_GEOPOSE", str(setup / "data"))
    configs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        configs.append(write_config(tmp_path / name / "c.yaml", [setup / "a.pth"]))

    assert run_command(submit, [str(config) for config in configs]) == 0

    archives = [tmp_path / name / "out/submission_compressed.tar.gz" for name in ("one", "two")]
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_visualize_adds_pictures_beside_the_submission(setup, tmp_path):
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])

    assert run(config, setup / "data", "--visualize") == 0

    pictures = sorted((tmp_path / "out/visualization").iterdir())
    assert [path.name for path in pictures] == [f"{name}_VIZ.jpg" for name in NAMES]
    assert min(read_rgb(pictures[0]).shape[:2]) > 200
    with tarfile.open(tmp_path / "out/submission_compressed.tar.gz") as archive:
        assert not any("VIZ" in name for name in archive.getnames())


def test_leftovers_of_an_earlier_run_stay_out(setup, tmp_path):
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    assert run(config, setup / "data") == 0
    first = (tmp_path / "out/submission_compressed.tar.gz").read_bytes()
    (tmp_path / "out/submission/XYZ_001_AGL.tif").write_bytes(b"of another data set")

    assert run(config, setup / "data") == 0

    assert (tmp_path / "out/submission_compressed.tar.gz").read_bytes() == first


def test_failing_images_are_named_and_the_others_written(setup, tmp_path, capsys):
    """One file is garbage, one prediction is not a number; a complete run went before."""
    data = write_split(tmp_path / "data")
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"], batch_size=3)
    assert run(config, data) == 0
    (data / "test/ABC_002_RGB.png").write_bytes(b"garbage")
    capsys.readouterr()

    assert run(config, data) == 1

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 1 of 5 images failed")
    assert "ABC_002_RGB.png" in error
    left = {path.name[:7] for path in (tmp_path / "out/submission").iterdir()}
    assert left == set(NAMES) - {"ABC_002"}
    assert not (tmp_path / "out/submission_compressed.tar.gz").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 700.0])
def test_predictions_that_cannot_be_stored_fail_the_image(tmp_path, capsys, value):
    payload = tiny_payload()
    weights = payload["model_state_dict"]
    name = next(key for key in reversed(weights) if key.startswith("agl_head") and "bias" in key)
    for key in weights:
        if key.startswith("agl_head") and key.endswith("bias") and weights[key].shape == (1,):
            name = key
            weights[key] = torch.full((1,), value)
    assert weights[name].shape == (1,)
    torch.save(payload, tmp_path / "bad.pth")
    data = write_split(tmp_path / "data", SIZES[:2])
    config = write_config(tmp_path / "c.yaml", [tmp_path / "bad.pth"])

    assert run(config, data) == 1

    assert "2 of 2 images failed" in capsys.readouterr().err.splitlines()[-1]
    assert list((tmp_path / "out/submission").iterdir()) == []
    assert not (tmp_path / "out/submission_compressed.tar.gz").exists()


@pytest.mark.parametrize(("size", "tta"), [((1, 1), "null"), ((3, 200), "d4"), ((33, 32), "d4")])
def test_any_image_size(setup, tmp_path, size, tta):
    data = write_split(tmp_path / "data", [size])
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])

    assert run(config, data, f"ensemble.tta={tta}") == 0

    assert read_agl_m(tmp_path / "out/submission/ABC_000_AGL.tif").shape == size


def test_views_that_cancel_out_have_no_direction(setup, tmp_path, capsys):
    data = write_split(tmp_path / "data", [(1, 1)])  # all eight views are one picture
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    assert run(config, data, "ensemble.tta=d4") == 1
    assert "ABC_000_VFLOW.json: no direction" in capsys.readouterr().err.splitlines()[-1]


BAD_CONFIGS = {
    "unknown top key": ("tta: d4", "unknown key tta"),
    "unknown key": ("ensemble: {models: [M], tta_modus: model}", "ensemble.tta_modus"),
    "unknown inference key": ("inference: {batchsize: 1}", "inference.batchsize"),
    "no models": ("ensemble: {tta: d4}", "ensemble.models"),
    "empty models": ("ensemble: {models: []}", "ensemble.models"),
    "one model, not a list": ("ensemble: {models: M}", "ensemble.models"),
    "unknown tta": ("ensemble: {models: [M], tta: d16}", "d16"),
    "unknown tta_mode": ("ensemble: {models: [M], tta_mode: both}", "both"),
    "missing checkpoint": ("ensemble: {models: [nowhere.pth]}", "nowhere.pth"),
    "url not in cache": ("ensemble: {models: ['http://127.0.0.1:1/c/d.pth']}", "put it into"),
    "model of no kind": ("ensemble: {models: [{path: M}]}", "average_checkpoints"),
    "both kinds": ("ensemble: {models: [{checkpoint: M, average_checkpoints: [M]}]}", "either"),
    "nothing to average": ("ensemble: {models: [{average_checkpoints: []}]}", "paths or URLs"),
    "downsample": ("ensemble: {models: [{checkpoint: M, downsample: 0.5}]}", "downsample"),
    "batch_size": ("ensemble: {models: [M]}\ninference: {batch_size: 0}", "batch_size"),
    "num_workers": ("ensemble: {models: [M]}\ninference: {num_workers: -1}", "num_workers"),
    "fp16": ("ensemble: {models: [M]}\ninference: {fp16: maybe}", "fp16"),
    "not yaml": ("ensemble: [", "not a readable config"),
    "a list": ("- a\n- b", "config"),
    "empty": ("", "ensemble.models"),
    "binary": ("\x00\x01", "not a readable config"),
    "interpolation": ("ensemble: {models: ['${nothing}']}", "nothing"),
    "no folder": ("ensemble: {models: [M]}\nsubmission_dir:", "submission_dir"),
    "not a checkpoint": ("ensemble: {models: [GARBAGE]}", "not a readable checkpoint"),
    "a checkpoint that does not fit": ("ensemble: {models: [MISFIT]}", "do not fit"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configs_end_with_one_line_and_leave_nothing(
    setup, tmp_path, capsys, monkeypatch, name
):
    text, expected = BAD_CONFIGS[name]
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("geopose.checkpoints.remote.download.time.sleep", lambda _: None)
    (tmp_path / "garbage.pth").write_bytes(b"garbage" * 100)
    if "MISFIT" in text:
        payload = tiny_payload()
        payload["model_state_dict"]["encoder.more"] = torch.zeros(1)
        torch.save(payload, tmp_path / "misfit.pth")
    files = {"GARBAGE": tmp_path / "garbage.pth", "MISFIT": tmp_path / "misfit.pth"}
    for word, path in {**files, "[M": f"[{setup}/a.pth", " M": f" {setup}/a.pth"}.items():
        text = text.replace(word, str(path))
    if "submission_dir" not in text and text.startswith(("ensemble: {", "inference")):
        text += f"\nsubmission_dir: {tmp_path}/out"
    (tmp_path / "c.yaml").write_text(text)
    before = sorted(tmp_path.iterdir())

    assert run(tmp_path / "c.yaml", setup / "data") == 2

    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{config}", "--data-dir", "{tmp}/nowhere"], "nowhere"),
        (["{config}"], "DRIVENDATA_OVERHEAD_GEOPOSE"),
        (["{tmp}/nothing.yaml", "--data-dir", "{data}"], "no such config file"),
        (["{tmp}", "--data-dir", "{data}"], "no such config file"),
        (["a.b=1", "--data-dir", "{data}"], "no config file"),
        ([], "required"),
        (["{config}", "{config}", "--data-dir", "{data}"], "used by another config"),
        (["{config}", "ensemble.nothing=1", "--data-dir", "{data}"], "ensemble.nothing"),
        (["{config}", "ensemble=1", "--data-dir", "{data}"], "ensemble"),
        (["{config}", "inference.batch_size=x", "--data-dir", "{data}"], "batch_size"),
        (["{config}", "inference.batch_size.x=1", "--data-dir", "{data}"], "batch_size"),
        (
            ["{config}", "ensemble.models.0=x.pth", "--data-dir", "{data}"],
            "error: ensemble.models.0=x.pth: ensemble.models is a list, and lists are replaced",
        ),
        (
            ["{config}", "inference=[", "ensemble.tta=d4", "--data-dir", "{data}"],
            "error: inference=[: cannot be set",
        ),
        (["{config}", "--data-dir", "{data}", "--bogus"], "--bogus"),
    ],
)
def test_bad_arguments_end_with_one_line(setup, tmp_path, capsys, monkeypatch, arguments, expected):
    monkeypatch.delenv("DRIVENDATA_OVERHEAD_GEOPOSE", raising=False)
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    words = {"config": config, "tmp": tmp_path, "data": setup / "data"}
    try:
        code = run_command(submit, [argument.format(**words) for argument in arguments])
    except SystemExit as ended:
        code = ended.code

    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "folder",
    [
        "{tmp}/file",
        "{tmp}/file/more",
        "/dev/null/x",
        "{tmp}/" + "a" * 300,
        "{tmp}/taken",
        "/proc/x",
    ],
)
def test_an_output_folder_that_cannot_be_made(setup, tmp_path, capsys, monkeypatch, folder):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/submission").write_text("a file")
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    before = sorted(tmp_path.rglob("*"))

    def never(*_: object) -> None:
        raise AssertionError("loaded a model before it looked at the folder")

    monkeypatch.setattr("geopose.inference.build.load_model", never)
    assert run(config, setup / "data", f"submission_dir={folder.format(tmp=tmp_path)}") == 2

    error = capsys.readouterr().err
    assert error.startswith("error: submission_dir: cannot write to")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "place",
    [
        "pipeline.pipeline.DeviceCopy.upload",
        "pipeline.pipeline.DeviceCopy.download",
        "pipeline.pipeline.PoseEnsemble.forward",
        "submission.outputs.to_centimetres",
    ],
)
def test_too_little_memory_says_what_to_lower(setup, tmp_path, capsys, monkeypatch, place):
    def full(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory\nCompile with ...")

    monkeypatch.setattr(f"geopose.inference.{place}", full)
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    assert run(config, setup / "data") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "inference.precision=bf16" in error
    assert "batch_size" not in error  # is 1 already


def test_fp16_without_a_gpu_computes_in_float32_and_says_so(setup, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])
    assert run(config, setup / "data", f"submission_dir={tmp_path}/fp32") == 0
    assert run(config, setup / "data", "inference.fp16=True") == 0
    assert "computing in fp32" in caplog.text
    names = [tmp_path / name / "submission_compressed.tar.gz" for name in ("fp32", "out")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_rgb_under_other_names_and_formats(setup, tmp_path):
    """Users' own images: listed as .png, id unlike the file name."""
    data = tmp_path / "data"
    (data / "test").mkdir(parents=True)
    write_png(data / "test/site.7_RGB.png", np.full((50, 60, 3), 90, np.uint8))
    (data / "metadata.csv").write_text("id,city,gsd\n7,X,0.5\n")
    (data / "geopose_test.csv").write_text("id,rgb\n7,site.7_RGB.png\n")
    config = write_config(tmp_path / "c.yaml", [setup / "a.pth"])

    assert run(config, data) == 0

    names = sorted(path.name for path in (tmp_path / "out/submission").iterdir())
    assert names == ["site.7_AGL.tif", "site.7_VFLOW.json"]
