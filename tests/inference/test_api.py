"""The library in Python: what README shows runs in any folder; answers are those of submit.py."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import geopose
from geopose.data.heights import read_agl_m
from geopose.data.rgb import read_rgb, write_png
from geopose.data.vflow import read_vflow
from geopose.errors import InputError
from geopose.imagery.rectify import rectify
from geopose.inference.submission.command import submit
from tests.tiny_run import (
    ENVIRONMENT,
    ROOT,
    run_script,
    write_checkpoint,
    write_config,
    write_split,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (97, 130, 3), dtype=np.uint8)


def test_the_example_of_the_readme_runs_in_any_folder(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = [text for text in examples if "geopose.load(" in text]
    write_png(tmp_path / "view.png", IMAGE)
    shown = "\nprint(agl_m.shape, agl_m.dtype, footprints.rgb.shape)"
    done = run_script("-c", example + shown, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(97, 130) float32 (97, 130, 3)" in done.stdout
    assert "demo: a small network trained on synthetic scenes" in done.stderr


def test_it_answers_as_submit_does(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.pth", seed=1)
    data = write_split(tmp_path / "data", [(97, 130)])
    (image,) = (data / "test").glob("*.png")
    rows = (data / "metadata.csv").read_text().splitlines()
    gsd_m = float(dict(zip(rows[0].split(","), rows[1].split(","), strict=True))["gsd"])
    config = write_config(tmp_path / "c.yaml", [str(checkpoint)])
    submit([str(config), "--data-dir", str(data), "ensemble.tta=d4"])
    (agl,) = tmp_path.rglob("submission/*_AGL.tif")
    (vflow,) = tmp_path.rglob("submission/*_VFLOW.json")

    found = geopose.load(checkpoint).predict(read_rgb(image), gsd_m)
    assert found.agl_m.dtype == np.float32
    np.testing.assert_allclose(found.agl_m, read_agl_m(agl), atol=0.0051)  # whole centimetres
    assert (found.scale_px_per_m, found.angle_rad) == pytest.approx(read_vflow(vflow), rel=1e-5)


def test_views_and_device_can_be_chosen(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "a.pth", seed=1)
    model = geopose.load(str(checkpoint), tta=None, precision="fp32", device="cpu")
    assert (model.config.tta, model.config.precision) == (None, "fp32")
    assert model.device == torch.device("cpu")
    assert not np.array_equal(
        model.predict(IMAGE, 0.5).agl_m, geopose.load(checkpoint).predict(IMAGE, 0.5).agl_m
    )


@pytest.mark.parametrize(
    ("image", "gsd_m", "says"),
    [
        (IMAGE[:, :, 0], 0.5, "must be uint8 of H x W x 3"),
        (IMAGE.astype(np.float32), 0.5, "rgb is float32"),
        (IMAGE[:0], 0.5, "must be uint8"),
        (IMAGE, 0.0, "gsd_m is 0.0"),
        (IMAGE, float("nan"), "gsd_m is nan"),
        (IMAGE, "0.5", "gsd_m is '0.5'"),
    ],
)
def test_what_is_no_image_is_refused(
    image: np.ndarray, gsd_m: float, says: str, tmp_path: Path
) -> None:
    model = geopose.load(write_checkpoint(tmp_path / "a.pth"), tta=None)
    with pytest.raises(InputError, match=says):
        model.predict(image, gsd_m)


def test_a_device_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device nonsense"):
        geopose.load(write_checkpoint(tmp_path / "a.pth"), device="nonsense")


def test_a_numpy_number_is_a_gsd_and_turned_arrays_are_images(tmp_path: Path) -> None:
    model = geopose.load(write_checkpoint(tmp_path / "a.pth"), tta=None)
    turned = np.rot90(IMAGE)  # a view, not contiguous
    found = model.predict(turned, np.float32(0.5))
    assert found.agl_m.shape == (130, 97)


def test_importing_the_package_stays_light() -> None:
    code = "import geopose, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_rectify_is_the_library_s_own() -> None:
    assert geopose.rectify is rectify
    with pytest.raises(AttributeError, match="nonsense"):
        geopose.nonsense  # noqa: B018
