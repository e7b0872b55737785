"""Layouts: whatever is wrong with CSV files or names is said with file and row."""

import dataclasses
import os
from pathlib import Path

import pytest

from geopose.data.heights import write_agl_cm
from geopose.data.layout import (
    DATA_DIR_VARIABLE,
    agl_name,
    check_sizes,
    resolve_data_dir,
    vflow_name,
    viz_name,
)
from geopose.data.layouts.splits import read_split
from geopose.errors import InputError
from tests.tiny_data import heights, write_data_dir


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return write_data_dir(tmp_path / "data", ["JAX", "OMA"])


def test_ids_stay_strings_and_columns_may_be_in_any_order(data_dir: Path) -> None:
    (data_dir / "metadata.csv").write_text(
        "\ufeffgsd,extra,id,city\n0.31,x,000,JAX\n0.5,,001,OMA\n", encoding="utf-8"
    )
    first, second = read_split(data_dir, "train")
    assert (first.image_id, first.city, first.gsd_m, first.row) == ("000", "JAX", 0.31, 2)
    assert second.rgb == data_dir / "train" / "OMA_001_RGB.j2k"
    assert second.agl == data_dir / "train" / "OMA_001_AGL.tif"
    assert second.vflow == data_dir / "train" / "OMA_001_VFLOW.json"


def test_test_rows_have_no_truth_and_may_have_more_columns(data_dir: Path) -> None:
    (data_dir / "test" / "JAX_000_RGB.j2k").write_bytes(b"")
    (data_dir / "geopose_test.csv").write_text("json,rgb,id\nnone.json,JAX_000_RGB.j2k,000\n")
    (record,) = read_split(data_dir, "test")
    assert record.agl is None
    assert record.vflow is None


def test_the_png_is_preferred_and_may_be_alone(data_dir: Path) -> None:
    record = read_split(data_dir, "train")[0]
    assert record.rgb_file() == record.rgb
    png = record.rgb.with_suffix(".png")
    png.write_bytes(record.rgb.read_bytes())
    assert record.rgb_file() == png
    record.rgb.unlink()
    assert read_split(data_dir, "train")[0].rgb_file() == png


@pytest.mark.parametrize("suffix", [".j2k", ".jp2"])
def test_a_png_from_before_the_image_was_replaced_is_not_read(data_dir: Path, suffix: str) -> None:
    record = read_split(data_dir, "train")[0]
    record = dataclasses.replace(record, rgb=record.rgb.rename(record.rgb.with_suffix(suffix)))
    png = record.rgb.with_suffix(".png")
    png.touch()
    assert record.rgb_file() == png
    os.utime(png, ns=(0, record.rgb.stat().st_mtime_ns - 1))
    assert record.rgb_file() == record.rgb


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("geopose_train.csv", "id,agl,json,rgb", "id,agl,rgb", "column json is missing"),
        ("geopose_train.csv", "000,", "009,", "row 2: id '009' is not in .*metadata.csv"),
        ("geopose_train.csv", "001,", "000,", "row 3: id '000' is already in row 2"),
        ("geopose_train.csv", "OMA_001_AGL.tif", "../x.tif", "row 3: agl is '../x.tif'"),
        ("geopose_train.csv", "OMA_001_AGL.tif", "/x.tif", "row 3: agl is '/x.tif'"),
        ("geopose_train.csv", "OMA_001_AGL.tif", "x.tif", "row 3 .*train/x.tif is not there"),
        ("geopose_train.csv", "OMA_001_RGB.j2k", "x.j2k", "row 3 .*train/x.j2k is not there"),
        ("geopose_train.csv", ",OMA_001_RGB.j2k", "", "row 3: rgb is empty"),
        ("metadata.csv", "001,OMA,0.5", "001,OMA,0", "row 3: gsd of '001' is '0'"),
        ("metadata.csv", "001,OMA,0.5", "001,OMA,nan", "row 3: gsd of '001' is 'nan'"),
        ("metadata.csv", "001,OMA,0.5", "001,OMA,fine", "row 3: gsd of '001' is 'fine'"),
        ("metadata.csv", "001,OMA", "001,", "row 3: city is empty"),
        ("metadata.csv", "001,OMA", "000,OMA", "row 3: id '000' is already in row 2"),
        ("metadata.csv", "id,city", "id,town", "column city is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(
    data_dir: Path, file: str, old: str, new: str, message: str
) -> None:
    path = data_dir / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        read_split(data_dir, "train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"id,agl,json,rgb\n", b"\xff\xfe\x00", b'a,"b'])
def test_empty_or_garbled_csv_files_are_named(data_dir: Path, content: bytes) -> None:
    (data_dir / "geopose_train.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"geopose_train\.csv"):
        read_split(data_dir, "train")


def test_missing_csv_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.csv: No such file"):
        read_split(tmp_path, "test")


def test_two_images_with_one_prediction_name_are_refused(data_dir: Path) -> None:
    for name in ("A_RGB.j2k", "A_RGB.tif"):
        (data_dir / "test" / name).write_bytes(b"")
    (data_dir / "geopose_test.csv").write_text("id,rgb\n000,A_RGB.j2k\n001,A_RGB.tif\n")
    with pytest.raises(InputError, match=r"row 3 \(001\): A_RGB\.tif would overwrite .* row 2"):
        read_split(data_dir, "test")


def test_sizes_that_differ_are_named_with_the_row(data_dir: Path) -> None:
    records = read_split(data_dir, "train")
    check_sizes(records)
    write_agl_cm(data_dir / "train" / "OMA_001_AGL.tif", heights(64, 60), allow_nodata=True)
    with pytest.raises(InputError, match=r"geopose_train\.csv row 3 \(001\).*64 x 64.*60 x 64"):
        check_sizes(records)


def test_data_dir_comes_from_the_argument_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(InputError, match=DATA_DIR_VARIABLE):
        resolve_data_dir(None)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    assert resolve_data_dir(None) == tmp_path
    with pytest.raises(InputError, match="is not a directory"):
        resolve_data_dir(tmp_path / "none")


def test_names_of_predictions_follow_the_image() -> None:
    assert agl_name("JAX_1_RGB.j2k") == agl_name("JAX_1_RGB") == "JAX_1_AGL.tif"
    assert agl_name("a.b.tif") == "a.b_AGL.tif"
    assert vflow_name("JAX_1_RGB.j2k") == "JAX_1_VFLOW.json"
    assert viz_name("JAX_1_RGB.j2k") == "JAX_1_VIZ.jpg"
