"""Tiles cover an image to its last pixel, and what they say is put together without a trace."""

import numpy as np
import pytest

from geopose.errors import RunError
from geopose.inference.images.mosaic import Mosaic, MosaicMap
from geopose.inference.images.tiling import Axis, Tiling


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 127, 128, 333, 701, 2000])
@pytest.mark.parametrize("overlap", [1, 16, 32])
def test_tiles_cover_an_axis_and_overlap(length, overlap):
    axis = Axis.of(length, 64, overlap)
    covered = np.zeros(length, int)
    for span in axis.spans:
        assert span.start >= 0
        assert span.stop <= length
        assert span.stop - span.start == min(length, 64)
        covered[span] += 1
    assert covered.min() >= 1
    for before, after in zip(axis.spans, axis.spans[1:], strict=False):
        assert before.stop - after.start >= overlap - 1  # starts are whole pixels


@pytest.mark.parametrize("shape", [(701, 333), (64, 64), (65, 1000), (1, 1), (300, 64)])
def test_a_constant_comes_out_constant_to_the_last_row_and_column(tmp_path, shape):
    tiling, mosaic = Tiling.of(shape, 64, 16), Mosaic(tmp_path / "maps", 2, shape)
    for number in range(len(tiling)):
        weights = tiling.weights(number)
        assert weights.min() > 0  # a weight of zero at the border leaves a frame
        tile = np.full(weights.shape, 7.0, np.float32)
        mosaic.add(tiling.window(number), weights, [tile, 2 * tile])

    everywhere = slice(0, shape[0]), slice(0, shape[1])
    np.testing.assert_allclose(mosaic.read(0, everywhere), 7.0, rtol=1e-6)
    np.testing.assert_allclose(mosaic.read(1, everywhere), 14.0, rtol=1e-6)


def test_tiles_that_differ_meet_without_a_step(tmp_path):
    shape = 64, 200
    tiling, mosaic = Tiling.of(shape, 64, 32), Mosaic(tmp_path / "maps", 1, shape)
    for number in range(len(tiling)):
        weights = tiling.weights(number)
        mosaic.add(
            tiling.window(number), weights, [np.full(weights.shape, 10.0 * number, np.float32)]
        )

    row = mosaic.read(0, (slice(0, 1), slice(0, 200)))[0]
    steps = np.abs(np.diff(row))
    assert row[0] == pytest.approx(0.0)
    assert row[-1] == pytest.approx(10.0 * (len(tiling) - 1))
    assert steps.max() < 10.0 / 16  # a jump of 10 m is spread over half of the overlap and more


def test_a_map_is_no_data_where_the_image_is(tmp_path):
    mosaic, valid = Mosaic(tmp_path / "maps", 1, (4, 6)), np.ones((4, 6), bool)
    valid[1, 2] = False
    mosaic.add(
        (slice(0, 4), slice(0, 6)), np.ones((4, 6), np.float32), [np.ones((4, 6), np.float32)]
    )

    found = MosaicMap(mosaic, 0, valid)[slice(1, 3), slice(2, 6)]

    assert np.isnan(found[0, 0])
    assert np.isfinite(found).sum() == 7


def test_a_mosaic_that_cannot_be_made_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*maps: No such file"):
        Mosaic(tmp_path / "gone" / "maps", 1, (4, 6))
