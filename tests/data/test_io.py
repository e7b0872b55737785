"""Files: what is read is right or refused by name; what is written is whole or not there."""

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from geopose.data.heights import read_agl_cm, read_agl_m, write_agl_cm
from geopose.data.image_size import image_size
from geopose.data.rgb import read_rgb, write_j2k, write_png
from geopose.data.vflow import read_vflow, write_vflow
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path
from tests.tiny_data import REALDATA, heights, smooth_rgb

ATTACK = REALDATA / "reader_attack"
TILES = REALDATA / "autzen_geopose_tiles"


@pytest.fixture
def rgb() -> np.ndarray:
    return smooth_rgb(48, 80)


def test_lossless_images_come_back_as_they_were(tmp_path: Path, rgb: np.ndarray) -> None:
    write_png(tmp_path / "a.png", rgb)
    write_j2k(tmp_path / "a.j2k", rgb, lossless=True)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", compression="lzw")
    tifffile.imwrite(
        tmp_path / "planar.tif", rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    )
    Image.fromarray(rgb).save(tmp_path / "a.jp2", irreversible=False)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_rgb(path), rgb), path
        assert image_size(path) == (48, 80), path


def test_lossy_j2k_keeps_the_channel_order_and_is_a_raw_code_stream(tmp_path: Path) -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    write_j2k(tmp_path / "red.j2k", red, ratio=10)
    assert (tmp_path / "red.j2k").read_bytes()[:4] == b"\xff\x4f\xff\x51"
    assert read_rgb(tmp_path / "red.j2k").mean(axis=(0, 1)) == pytest.approx([200, 0, 0], abs=2)


def _save(path: Path, array: np.ndarray, **options: Any) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    elif path.suffix == ".j2k":
        path.write_bytes(imagecodecs.jpeg2k_encode(array, codecformat="j2k", **options))
    else:
        Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("suffix", [".tif", ".png", ".j2k"])
def test_other_samples_than_8_bit_rgb_are_named(
    tmp_path: Path, rgb: np.ndarray, suffix: str
) -> None:
    cases = {
        "16-bit": rgb.astype(np.uint16),
        "1 channel": rgb[..., 0].copy(),
        "4 channels": np.dstack([rgb, rgb[..., 0]]),
    }
    for what, array in cases.items():
        path = _save(tmp_path / f"x{suffix}", array)
        with pytest.raises(InputError, match=f"x{suffix}: it has {what}"):
            read_rgb(path)


def test_ten_bits_and_palettes_are_named(tmp_path: Path, rgb: np.ndarray) -> None:
    ten = _save(tmp_path / "ten.j2k", rgb.astype(np.uint16), bitspersample=10)
    with pytest.raises(InputError, match="10-bit"):
        read_rgb(ten)
    Image.fromarray(rgb).quantize(16).save(tmp_path / "p.png")
    with pytest.raises(InputError, match="a palette"):
        read_rgb(tmp_path / "p.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.jpg")
    with pytest.raises(InputError, match="1 channel"):
        read_rgb(tmp_path / "grey.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.j2k", "a.jp2", "a.tif", "a.jpg"])
def test_a_truncated_image_is_never_read(tmp_path: Path, rgb: np.ndarray, name: str) -> None:
    whole = tmp_path / name
    if name == "a.j2k":
        write_j2k(whole, rgb)
    elif name == "a.tif":
        tifffile.imwrite(whole, rgb, photometric="rgb", compression="deflate", rowsperstrip=16)
    else:
        Image.fromarray(rgb).save(whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut_{name}"
    # A JPEG keeps its picture when only the last bytes (its end marker) are gone.
    keep = [0, 3, 10, 40, len(data) // 3, len(data) // 2, len(data) - (40 if "jpg" in name else 1)]
    for count in keep:
        cut.write_bytes(data[:count])
        with pytest.raises(InputError, match=f"cut_{name}"):
            read_rgb(cut)


def test_a_missing_tile_of_a_j2k_is_noticed(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "tiled.j2k"
    Image.fromarray(rgb).save(path, format="JPEG2000", no_jp2=True, tile_size=(32, 32))
    assert np.abs(read_rgb(path).astype(int) - rgb).max() <= 3
    data = path.read_bytes()
    last = data.rindex(b"\xff\x90\x00\x0a")
    path.write_bytes(data[:last] + b"\xff\xd9")
    with pytest.raises(InputError, match="5 of 6 tiles"):
        read_rgb(path)


def test_a_header_that_claims_absurd_sizes_does_not_fill_the_memory(
    tmp_path: Path, rgb: np.ndarray
) -> None:
    write_png(tmp_path / "a.png", rgb)
    png = bytearray((tmp_path / "a.png").read_bytes())
    for side in (30_000, 200_000):
        png[16:24] = struct.pack(">II", side, side)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        (tmp_path / "a.png").write_bytes(png)
        with pytest.raises(InputError, match=f"{side} x {side}"):
            read_rgb(tmp_path / "a.png")
    write_j2k(tmp_path / "a.j2k", rgb)
    j2k = bytearray((tmp_path / "a.j2k").read_bytes())
    j2k[8:16] = struct.pack(">II", 60_000, 60_000)
    (tmp_path / "a.j2k").write_bytes(j2k)
    with pytest.raises(InputError, match="60000 x 60000 pixels, the limit"):
        read_rgb(tmp_path / "a.j2k")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint16))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        tiff.pages.first.tags["ImageLength"].overwrite(400_000_000)
    with pytest.raises(InputError, match=r"a\.tif"):
        read_agl_m(tmp_path / "a.tif")


def test_not_an_image_not_there_and_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    for path in (tmp_path / "a.png", tmp_path / "none.png", tmp_path):
        for read in (read_rgb, image_size, read_agl_m, read_vflow):
            with pytest.raises(InputError, match=str(path)):
                read(path)


def _pillow(path: Path) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError):
        return None


def _read_or_complaint(path: Path) -> np.ndarray | str:
    complaints = []
    for read in (read_rgb, read_agl_cm):
        try:
            return read(path)
        except InputError as error:
            complaints.append(str(error))
    return max(complaints, key=len)


@pytest.mark.skipif(not ATTACK.is_dir(), reason=f"{ATTACK} is not there")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_files_made_to_break_readers_are_read_as_others_do_or_named() -> None:
    accepted = set()
    for path in sorted(ATTACK.glob("*/*")):
        outcome = _read_or_complaint(path)
        if isinstance(outcome, str):
            assert path.name in outcome
            assert len(outcome) < 400
            continue
        accepted.add(path.name)
        reference = _pillow(path)
        assert reference is None or np.array_equal(reference, outcome), path
    assert {"goodstuff.j2k", "nemo.jp2", "planar-rgb-u8.tif", "cogeo.tif"} <= accepted
    assert not {"issue142.j2k", "uint16.j2k", "corrupt.tif", "flower-rgb-contig-16.tif"} & accepted


@pytest.mark.skipif(not TILES.is_dir(), reason=f"{TILES} is not there")
def test_real_tiles_keep_their_pixels_and_units(tmp_path: Path) -> None:
    lossless = read_rgb(TILES / "EUG_t01_RGB.j2k")
    assert np.array_equal(lossless, read_rgb(TILES / "EUG_t01_RGB.tif"))
    agl_m = read_agl_m(TILES / "EUG_t05_AGL.tif")
    assert np.isnan(agl_m).mean() == pytest.approx(0.0272, abs=1e-3)
    assert np.nanmax(agl_m) == pytest.approx(41.75)
    write_agl_cm(tmp_path / "a.tif", agl_m, allow_nodata=True)
    assert np.array_equal(read_agl_cm(tmp_path / "a.tif"), read_agl_cm(TILES / "EUG_t05_AGL.tif"))


def test_heights_are_rounded_to_cm_and_stored_as_the_challenge_wants(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    agl_m = np.array([[0.0, 0.004, 0.006], [-0.004, 655.34, np.nan]], np.float32)
    write_agl_cm(path, agl_m, allow_nodata=True)
    assert read_agl_cm(path).tolist() == [[0, 0, 1], [0, 65534, 65535]]
    assert np.isnan(read_agl_m(path)).sum() == 1
    with Image.open(path) as image:
        assert image.mode == "I;16"
        assert image.info["compression"] == "tiff_adobe_deflate"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, 655.36, 1e9])
def test_heights_that_cm_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    agl_m = np.ones((4, 5), np.float32)
    agl_m[2, 3] = value
    with pytest.raises(RunError, match="row 2, column 3"):
        write_agl_cm(tmp_path / "a.tif", agl_m)
    assert not list(tmp_path.iterdir())


def test_a_height_map_is_one_channel_of_16_bits(tmp_path: Path, rgb: np.ndarray) -> None:
    agl_cm = np.arange(600, dtype=np.uint16).reshape(20, 30)
    cases: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "3 channels": (rgb.astype(np.uint16), {"photometric": "rgb"}),
        "8-bit": (rgb[..., 0], {}),
        "32-bit": (heights(20, 30), {}),
        "int16": (agl_cm.astype(np.int16), {}),
        "2 pages": (np.stack([agl_cm, agl_cm]), {"photometric": "minisblack"}),
        "MINISWHITE": (agl_cm, {"photometric": "miniswhite"}),
    }
    for what, (array, options) in cases.items():
        path = _save(tmp_path / "x.tif", array, **options)
        with pytest.raises(InputError, match=rf"x\.tif: it has .*{what}"):
            read_agl_m(path)


def test_a_height_map_with_a_missing_strip_is_not_filled_with_ground(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((32, 32), 900, np.uint16), rowsperstrip=8)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = list(tiff.pages.first.tags["StripByteCounts"].value)
        tiff.pages.first.tags["StripByteCounts"].overwrite([*counts[:-1], 0])
    with pytest.raises(InputError, match="missing"):
        read_agl_m(path)


def test_flow_converts_units_and_wraps_the_angle(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_vflow(path, 1.25, -0.5)
    assert path.read_text() == '{"scale": 0.0125, "angle": 5.783185307179586}'
    assert read_vflow(path) == pytest.approx((1.25, 2 * np.pi - 0.5))
    for scale, angle in ((np.nan, 0.0), (1.0, np.inf), (-1.0, 0.0)):
        with pytest.raises(RunError, match=r"v\.json"):
            write_vflow(path, scale, angle)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"scale": NaN, "angle": 1}',
        '{"scale": 1, "angle": Infinity}',
        '{"scale": -1, "angle": 0}',
        '{"scale": true, "angle": 0}',
        '{"scale": "1", "angle": 0}',
        '{"scale": 1' + "0" * 400 + ', "angle": 0}',
        '{"scale": 1e308, "angle": 0}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_bad_flow_file_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"v\.json") as caught:
        read_vflow(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_an_impossible_write_is_a_failed_run(tmp_path: Path, rgb: np.ndarray) -> None:
    with pytest.raises(RunError, match=r"nowhere/a\.png: No such file"):
        write_png(tmp_path / "nowhere" / "a.png", rgb)
