"""Flow that varies over an image: rectified by place, from a flow file or the image's RPCs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from geopose.cli import run_command
from geopose.data.heights import write_agl_cm
from geopose.imagery.command import main
from geopose.imagery.files.raster import create_raster, open_raster
from geopose.imagery.place.field import FlowField, read_field
from geopose.imagery.place.flow import sensor_flow
from geopose.imagery.place.georeference import Georeference
from geopose.imagery.rectify import HIDDEN, SEEN, Rectified, rectify_windows
from tests.made_up_rpc import made_up_rpc
from tests.tiny_data import heights

SHAPE = (900, 220)
_FINE = 4  # points a pixel


def _field() -> FlowField:
    """Over 900 rows the lean turns from down to right: 0.9 px a metre more or less."""
    rows, columns = np.array([0.0, 300.0, 600.0, 899.0]), np.array([0.0, 219.0])
    along = rows / 899.0
    vectors = np.stack([0.2 + 0.9 * along, 1.1 - 0.9 * along], axis=-1)
    return FlowField(columns, rows, np.repeat(vectors[:, None], 2, axis=1))


def _strip() -> tuple[np.ndarray, np.ndarray]:
    """(heights as seen, heights of what stands on each pixel's ground) of buildings on a strip."""
    rng = np.random.default_rng(5)
    ground = np.zeros((SHAPE[0] * _FINE, SHAPE[1] * _FINE), np.float32)
    for top in range(40, SHAPE[0] - 60, 62):
        for left in (40, 120):
            y, x = (_FINE * np.array([top, left]) + rng.integers(0, 40, 2)).tolist()
            ground[y : y + 30 * _FINE, x : x + 36 * _FINE] = rng.uniform(8, 40)
    seen = np.zeros(SHAPE, np.float32)
    edge = ndimage.binary_erosion(ground > 0) ^ (ground > 0)
    for where, steps in ((ground > 0, 1), (edge, 160)):
        i, j = np.nonzero(where)
        y, x = (i + 0.5) / _FINE - 0.5, (j + 0.5) / _FINE - 0.5
        flow = _field().at(x, y)
        for share in np.linspace(1, 0, steps):
            height = ground[i, j] * share
            row = np.rint(y - height * flow[:, 1]).astype(int)
            column = np.rint(x - height * flow[:, 0]).astype(int)
            inside = (row >= 0) & (row < SHAPE[0]) & (column >= 0) & (column < SHAPE[1])
            np.maximum.at(seen, (row[inside], column[inside]), height[inside])
    return seen, ground[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]


def _rectified(seen: np.ndarray, field: FlowField | None, tile_px: int) -> tuple:
    count = np.zeros(SHAPE, int)
    result = Rectified(np.empty(SHAPE, np.float32), None, np.empty(SHAPE, np.uint8))
    borders = np.zeros(SHAPE, bool)
    middle = _field().at(110.0, 450.0)
    flow = float(np.hypot(*middle)), float(np.arctan2(*middle))
    for window, part in rectify_windows(seen, *flow, None, tile_px, field):
        count[window] += 1
        result.agl_m[window], result.occlusion[window] = part.agl_m, part.occlusion
        borders[window[0].start - 1 : window[0].start + 1] |= window[0].start > 0
    return result, count, borders


def test_a_strip_is_rectified_by_place() -> None:
    """Windows of one vector each: roofs on their footprints, no cracks where windows meet."""
    seen, ground = _strip()
    result, count, borders = _rectified(seen, _field(), 2048)
    assert (count == 1).all()
    assert borders.any()
    low, high = ndimage.minimum_filter(ground, 3), ndimage.maximum_filter(ground, 3)
    roofs = (result.agl_m > 5.0) & (result.agl_m > 0.6 * high)
    good = (result.agl_m >= low - 0.5) & (result.agl_m <= high + 0.5)
    assert good[roofs].mean() > 0.99
    inner = ndimage.binary_erosion(ground > 0, iterations=2) & (result.occlusion != HIDDEN)
    assert (result.occlusion == SEEN)[inner].mean() > 0.999
    cracks = np.isnan(result.agl_m) & ndimage.binary_erosion(ground > 0, iterations=2)
    assert cracks[borders].mean() <= cracks[~borders].mean() + 1e-3
    plain = _rectified(seen, None, 2048)[0]
    roofs = plain.agl_m > 5.0
    assert ((plain.agl_m >= low - 0.5) & (plain.agl_m <= high + 0.5))[roofs].mean() < 0.9


def test_a_field_of_one_vector_changes_nothing() -> None:
    agl_m = heights(150, 130, 1)
    vectors = np.broadcast_to([1.1 * np.sin(0.7), 1.1 * np.cos(0.7)], (3, 2, 2)).copy()
    vectors[1, 0] = np.nan  # unknown there: scale and angle hold
    field = FlowField(np.array([0.0, 129.0]), np.array([0.0, 70.0, 149.0]), vectors)
    pairs = [next(rectify_windows(agl_m, 1.1, 0.7, field=f))[1] for f in (None, field)]
    np.testing.assert_array_equal(pairs[0].agl_m, pairs[1].agl_m)
    np.testing.assert_array_equal(pairs[0].occlusion, pairs[1].occlusion)


def _write_field(path: Path, field: FlowField) -> None:
    names = {"columns": field.columns.tolist(), "rows": field.rows.tolist()}
    vectors = {k: (field.px_per_m[..., i] / 100.0).tolist() for i, k in enumerate("xy")}
    path.write_text(json.dumps({"scale": 0.0092, "angle": 0.9, "field": {**names, **vectors}}))


def test_a_flow_file_with_a_field(tmp_path: Path) -> None:
    seen, _ = _strip()
    write_agl_cm(tmp_path / "s_AGL.tif", seen)
    _write_field(tmp_path / "s.json", _field())
    files = ["--agl", str(tmp_path / "s_AGL.tif"), "--vflow", str(tmp_path / "s.json")]
    assert run_command(main, [*files, "--out", str(tmp_path / "o")]) == 0
    expected = _rectified(np.rint(seen * 100) / np.float32(100), _field(), 2048)[0]
    with open_raster(tmp_path / "o" / "s_AGL_RECTIFIED.tif") as made:
        np.testing.assert_allclose(made.read(), expected.agl_m, atol=0.02)
    assert read_field(tmp_path / "s.json") is not None


@pytest.mark.parametrize(
    "field",
    [
        3,
        {"columns": [0, 9], "rows": [0, 9], "x": [[0, 0], [0, 0]]},
        {"columns": [0, 9], "rows": [9, 0], "x": [[0, 0], [0, 0]], "y": [[0, 0], [0, 0]]},
        {"columns": [0, 9], "rows": [0, 9], "x": [[0, 0]], "y": [[0, 0]]},
        {"columns": [0], "rows": [0], "x": [[0]], "y": [[0]]},
    ],
)
def test_what_is_no_field_is_one_line(
    field: object, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    write_agl_cm(tmp_path / "s_AGL.tif", np.zeros((9, 9), np.float32))
    (tmp_path / "s.json").write_text(json.dumps({"scale": 0.01, "angle": 0.9, "field": field}))
    files = ["--agl", str(tmp_path / "s_AGL.tif"), "--vflow", str(tmp_path / "s.json")]
    assert run_command(main, [*files, "--out", str(tmp_path / "o")]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "s.json" in said
    assert "not a flow field" in said


def test_flow_by_the_rpcs_of_the_image(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    place = Georeference(rpc=made_up_rpc())
    agl_m = np.zeros((300, 400), np.float32)
    agl_m[100:140, 150:200] = 30.0
    for name, georeference in (("a", place), ("b", Georeference())):
        with create_raster(
            tmp_path / f"{name}_AGL.tif", 300, 400, 1, "f4", nodata=np.nan,
            georeference=georeference,
        ) as out:  # fmt: skip
            out.write(agl_m, 0, 0)
    arguments = ["--flow", "rpc", "--out", str(tmp_path / "o")]
    assert run_command(main, ["--agl", str(tmp_path / "a_AGL.tif"), *arguments]) == 0
    flow = sensor_flow(place, 300, 400)
    expected = next(rectify_windows(agl_m, flow.scale_px_per_m, flow.angle_rad))[1]
    with open_raster(tmp_path / "o" / "a_AGL_RECTIFIED.tif") as made:
        np.testing.assert_array_equal(made.read(), expected.agl_m)
    capfd.readouterr()
    assert run_command(main, ["--agl", str(tmp_path / "b_AGL.tif"), *arguments]) == 2
    assert "b_AGL.tif: it has no RPCs" in capfd.readouterr().err
