"""What a file declares to be no data is no data: for heights, for images, in every step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from geopose.cli import run_command
from geopose.convert import main as convert
from geopose.data.dataset import GeoposeDataset
from geopose.data.heights import read_agl_cm, read_agl_m
from geopose.data.layouts.splits import read_split
from geopose.data.rgb import read_image, read_rgb, unknown_in
from geopose.errors import InputError
from geopose.evaluation import evaluate
from tests.tiny_data import heights, smooth_rgb, write_data_dir

SIZE = (48, 64)
UNKNOWN = np.zeros(SIZE, bool)
UNKNOWN[5:20, 30:] = True


def tag(text: str, code: int = 42113) -> list[tuple[int, int, int, str, bool]]:
    return [(code, 2, 0, text, True)]


def by_tag(value: int, text: str = "") -> Callable[[Path, np.ndarray], None]:
    def write(path: Path, array: np.ndarray) -> None:
        array = array.copy()
        array[UNKNOWN] = value
        tifffile.imwrite(path, array, metadata=None, extratags=tag(text or str(value)))

    return write


def by_metadata(path: Path, array: np.ndarray) -> None:
    array = array.copy()
    array[UNKNOWN] = 7
    count = array.shape[2] if array.ndim == 3 else 1
    item = f'<GDALMetadata><Item name="NODATA_VALUES">{" 7" * count}</Item></GDALMetadata>'
    tifffile.imwrite(path, array, metadata=None, extratags=tag(item, 42112))


def by_mask(path: Path, array: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(array, metadata=None)
        tiff.write(~UNKNOWN, metadata=None, subfiletype=4, photometric=4)


def by_alpha(path: Path, array: np.ndarray) -> None:
    alpha = np.where(UNKNOWN, 0, np.iinfo(array.dtype).max).astype(array.dtype)
    kind = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(
        path,
        np.dstack([array, alpha]),
        photometric=kind,
        planarconfig="contig",
        extrasamples=["unassalpha"],
        metadata=None,
    )


def by_msk_file(path: Path, array: np.ndarray) -> None:
    tifffile.imwrite(path, array, metadata=None)
    tifffile.imwrite(f"{path}.msk", np.where(UNKNOWN, 0, 255).astype(np.uint8), metadata=None)


def by_aux_file(path: Path, array: np.ndarray) -> None:
    array = array.copy()
    array[UNKNOWN] = 9
    tifffile.imwrite(path, array, metadata=None)
    count = array.shape[2] if array.ndim == 3 else 1
    value = "<NoDataValue>9.0E+00</NoDataValue>" * count
    Path(f"{path}.aux.xml").write_text(f"<PAMDataset>{value}</PAMDataset>")


WAYS = {
    "0": by_tag(0),
    "254": by_tag(254),
    "with spaces": by_tag(3, " 3.0 "),
    "metadata": by_metadata,
    "mask": by_mask,
    "alpha": by_alpha,
    "msk": by_msk_file,
    "aux": by_aux_file,
}


def sound(dtype: type) -> np.ndarray:
    """Values that no way above takes for no data."""
    shape = SIZE if dtype is np.uint16 else (*SIZE, 3)
    return np.random.default_rng(0).integers(20, 200, shape).astype(dtype)


@pytest.mark.parametrize("way", WAYS)
def test_heights_that_a_file_declares_unknown_are_nan(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a_AGL.tif"
    array = sound(np.uint16)
    WAYS[way](path, array)
    agl_cm = read_agl_cm(path)
    assert np.array_equal(agl_cm == 65535, UNKNOWN)
    assert np.array_equal(agl_cm[~UNKNOWN], array[~UNKNOWN])
    assert np.array_equal(np.isnan(read_agl_m(path)), UNKNOWN)


@pytest.mark.parametrize("value", ["nan", "-9999", "65535", "1e30", "0.5"])
def test_a_value_that_no_pixel_has_changes_nothing(tmp_path: Path, value: str) -> None:
    array = sound(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, metadata=None, extratags=tag(value))
    assert np.array_equal(read_agl_cm(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("value", ["none", "1,5", ""])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", sound(np.uint16), extratags=tag(value), metadata=None)
    with pytest.raises(InputError, match=r"a\.tif: .*no-data value is"):
        read_agl_cm(tmp_path / "a.tif")


@pytest.mark.parametrize("way", WAYS)
def test_pixels_that_an_image_declares_unknown_are_told(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a_RGB.tif"
    WAYS[way](path, sound(np.uint8))
    image = read_image(path)
    assert image.unknown is not None
    assert np.array_equal(image.unknown, UNKNOWN)
    assert image.rgb.shape == (*SIZE, 3)
    found = unknown_in(path)
    assert found is not None
    assert np.array_equal(found, UNKNOWN)


def test_a_transparent_colour_of_a_png(tmp_path: Path) -> None:
    rgb = sound(np.uint8)
    rgb[UNKNOWN] = (1, 2, 3)
    Image.fromarray(rgb).save(tmp_path / "a.png", transparency=(1, 2, 3))
    unknown = unknown_in(tmp_path / "a.png")
    assert unknown is not None
    assert np.array_equal(unknown, UNKNOWN)
    Image.fromarray(rgb).save(tmp_path / "b.png")
    assert unknown_in(tmp_path / "b.png") is None


@pytest.mark.parametrize("raw", [False, True])
def test_training_and_evaluation_leave_out_what_the_image_does_not_show(
    tmp_path: Path, raw: bool
) -> None:
    data_dir = write_data_dir(tmp_path / "data", ["JAX"], SIZE, ".png")
    train = data_dir / "train"
    (train / "JAX_000_RGB.png").unlink()
    by_mask(train / "JAX_000_RGB.tif", smooth_rgb(*SIZE))
    for table in data_dir.glob("*.csv"):
        table.write_text(table.read_text().replace(".png", ".tif"))
    agl_m = heights(*SIZE)
    tifffile.imwrite(
        train / "JAX_000_AGL.tif", np.nan_to_num(agl_m * 100).astype(np.uint16), metadata=None
    )
    if raw:
        assert run_command(convert, ["--data-dir", str(data_dir), "--format", "raw"]) == 0
    record = read_split(data_dir, "train")[0]
    assert (record.rgb_file().suffix == ".npy") == raw
    sample = GeoposeDataset([record], "rgb")[0]
    assert np.array_equal(np.isnan(sample["TARGET_AGL_MASK"][0].numpy()), UNKNOWN)
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    wrong = np.nan_to_num(agl_m * 100).astype(np.uint16)
    wrong[UNKNOWN] = 60000
    tifffile.imwrite(predicted / "JAX_000_AGL.tif", wrong, metadata=None)
    (predicted / "JAX_000_VFLOW.json").write_bytes((train / "JAX_000_VFLOW.json").read_bytes())
    assert evaluate(predicted, data_dir, layout="challenge", split="train")["score"] == 1.0


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_picture_that_wants_to_be_turned(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Refused where truth or a prediction goes with it, turned where it stands alone."""
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth_rgb(*SIZE)).save(path, exif=exif)
    with pytest.raises(InputError, match=f"orientation tag says {orientation} .*remove the tag"):
        read_rgb(path)
    exif[0x0112] = 1
    Image.fromarray(smooth_rgb(*SIZE)).save(tmp_path / "b.png", exif=exif)
    assert read_rgb(tmp_path / "b.png").shape[:2] == SIZE


def test_heights_that_want_to_be_turned_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, sound(np.uint16), metadata=None, extratags=[(274, 3, 1, 3, True)])
    with pytest.raises(InputError, match=r"a\.tif: it has the orientation 3 \(upside down\)"):
        read_agl_cm(path)
