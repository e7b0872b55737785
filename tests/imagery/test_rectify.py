"""Rectification: rendered scenes with exact truth, borders, no-data, symmetries, windows."""

import math

import numpy as np
import pytest
from scipy import ndimage

from geopose.errors import InputError
from geopose.geometry import SYMMETRIES, transform_scale_angle
from geopose.imagery.rectify import HIDDEN, SEEN, UNKNOWN, Rectified, rectify, rectify_windows
from tests.box_scenes import Box, render_boxes, town
from tests.tiny_data import heights, smooth_rgb

ANGLES = [0.0, 0.7, math.pi / 2, 2.2, math.pi, 3.9, 1.5 * math.pi, 5.6]


def _same(first: Rectified, second: Rectified) -> None:
    np.testing.assert_array_equal(first.agl_m, second.agl_m)
    np.testing.assert_array_equal(first.occlusion, second.occlusion)
    if first.rgb is not None or second.rgb is not None:
        np.testing.assert_array_equal(first.rgb, second.rgb)


@pytest.mark.parametrize("angle_rad", ANGLES)
@pytest.mark.parametrize("scale_px_per_m", [0.0, 0.5, 1.0, 1.5])
def test_boxes_stand_on_their_footprints(scale_px_per_m: float, angle_rad: float) -> None:
    boxes = [Box(120.4, 110.2, 160.7, 170.1, 30.0), Box(200.2, 220.6, 260.3, 250.4, 18.0, 0.2)]
    scene = render_boxes(boxes, (340, 360), scale_px_per_m, angle_rad)
    result = rectify(scene.agl_m, scale_px_per_m, angle_rad)
    roofs = (result.agl_m > 12.0).nonzero()
    low = ndimage.minimum_filter(scene.ground_m, 3)[roofs] - 0.3
    high = ndimage.maximum_filter(scene.ground_m, 3)[roofs] + 0.3
    landed = result.agl_m[roofs]
    assert ((landed >= low) & (landed <= high)).mean() > 0.99  # within 1 px of the footprint
    roof = (scene.ground_m > 0) & ~scene.hidden
    inner = ndimage.binary_erosion(roof, iterations=1)
    assert (result.occlusion[inner] == SEEN).all()
    np.testing.assert_allclose(result.agl_m[inner], scene.ground_m[inner], atol=0.4)
    hidden = result.occlusion == HIDDEN
    if scale_px_per_m == 0:
        assert not hidden.any()
        return
    if scale_px_per_m >= 1:
        assert (hidden & scene.hidden).sum() / (hidden | scene.hidden).sum() > 0.97
    deep = ndimage.binary_erosion(scene.hidden, iterations=2)
    assert np.isnan(result.agl_m[deep]).all()  # no second roof
    assert not (result.occlusion == UNKNOWN).any()


@pytest.mark.parametrize("angle_rad", ANGLES)
def test_a_town_with_slanting_roofs_has_no_cracks(angle_rad: float) -> None:
    scene = render_boxes(town((300, 310), 3, 25.0), (300, 310), 1.3, angle_rad)
    result = rectify(scene.agl_m, 1.3, angle_rad)
    roof = (scene.ground_m > 0) & ~scene.hidden & ~scene.outside
    inner = ndimage.binary_erosion(roof, iterations=2)
    assert inner.sum() > 3000
    assert (result.occlusion[inner] == SEEN).mean() > 0.999
    error = np.abs(result.agl_m - scene.ground_m)[inner & (result.occlusion == SEEN)]
    assert np.quantile(error, 0.99) < 0.35


def test_a_facade_stays_on_the_edge() -> None:
    """The wall's pixels spread neither into the ground before it nor over the roof."""
    scene = render_boxes([Box(60.0, 40.3, 100.0, 80.3, 20.0)], (160, 160), 1.0, 0.0)
    result = rectify(scene.agl_m, 1.0, 0.0)
    assert (result.agl_m[82:, :] == 0).all()
    assert (result.agl_m[42:79, 61:100] == 20.0).all()


def test_hidden_ground_is_not_bridged() -> None:
    """Between a roof's far edge and the ground behind it lies a hole, not a slope."""
    scene = render_boxes([Box(60.0, 60.0, 100.0, 100.0, 6.0)], (160, 160), 0.8, math.pi / 2)
    result = rectify(scene.agl_m, 0.8, math.pi / 2)
    assert np.isnan(result.agl_m[70:90, 57:59]).all()
    assert (result.agl_m[70:90, 62:98] == 6.0).all()


def test_a_blurred_far_edge_leaves_no_specks_on_hidden_ground() -> None:
    """Predictions blur a building's edges: heights in between belong to no surface."""
    scene = render_boxes(town((300, 310), 3, 40.0), (300, 310), 1.2, 1.0)
    blurred = ndimage.gaussian_filter(scene.agl_m, 1.5)
    deep = ndimage.binary_erosion(scene.hidden, iterations=3)
    assert (rectify(blurred, 1.2, 1.0).occlusion[deep] == SEEN).mean() < 0.04


def test_steep_surfaces_are_closed_with_heights_between_their_pixels() -> None:
    """A ramp that leans away is stretched: its cells fill, and none is taller or lower than it."""
    agl_m = np.zeros((60, 200), np.float32)
    agl_m[:, 40:100] = np.arange(60) * 0.9
    result = rectify(agl_m, 1.0, math.pi / 2)
    line = result.agl_m[30, 42:150]
    assert not np.isnan(line).any()
    np.testing.assert_allclose(line, (np.arange(42, 150) - 40) * 0.9 / 1.9, atol=0.5)
    assert (np.diff(line) >= 0).all()


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=lambda s: s.name)
@pytest.mark.parametrize("angle_rad", [0.0, 0.6, 2.0, 4.4])
def test_a_mirrored_image_gives_the_mirrored_result(symmetry, angle_rad: float) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    agl_m = render_boxes(town((190, 150), 1), (190, 150), 1.1, angle_rad).agl_m
    agl_m += rng.uniform(0, 0.5, agl_m.shape).astype(np.float32)
    agl_m[20:30, 50:80] = np.nan
    rgb = smooth_rgb(*agl_m.shape)
    expected = rectify(agl_m, 1.1, angle_rad, rgb)
    scale, angle = transform_scale_angle(1.1, angle_rad, symmetry.linear)
    moved = [np.ascontiguousarray(symmetry.apply_numpy(array)) for array in (agl_m, rgb)]
    result = rectify(moved[0], scale, angle, moved[1])
    back = symmetry.inverse
    for name in ("agl_m", "occlusion", "rgb"):
        ours = back.apply_numpy(getattr(result, name))
        theirs = getattr(expected, name)
        equal = (ours == theirs) | ((ours != ours) & (theirs != theirs))
        assert (~equal).sum() <= 3  # shifts that the mirrored flow's last bit rounds otherwise


def test_flat_roofs_mirror_to_the_last_pixel() -> None:
    """Whole and half pixels of shift, where rounding away from zero would show."""
    agl_m = np.zeros((80, 90), np.float32)
    agl_m[30:50, 30:60] = 7.0  # 3.5 px
    agl_m[40:45, 35:40] = 9.0  # 4.5 px
    right = rectify(agl_m, 0.5, math.pi / 2)
    left = rectify(np.ascontiguousarray(agl_m[:, ::-1]), 0.5, 1.5 * math.pi)
    np.testing.assert_array_equal(right.agl_m, left.agl_m[:, ::-1])
    np.testing.assert_array_equal(right.occlusion, left.occlusion[:, ::-1])


def test_nothing_piles_up_at_borders() -> None:
    agl_m = np.full((40, 50), 20.0, np.float32)
    result = rectify(agl_m, 1.0, 0.0)
    assert (result.agl_m[20:] == 20.0).all()
    assert np.isnan(result.agl_m[:20]).all()
    assert (result.occlusion[:20] != SEEN).all()
    far = rectify(agl_m, 1e6, 0.3)
    assert np.isnan(far.agl_m).all()


def test_a_wall_at_the_border_hides_its_own_roof() -> None:
    """A building whose roof is seen outside the image: what stands behind its wall is unknown."""
    scene = render_boxes([Box(20.0, 4.0, 60.0, 30.0, 60.0)], (100, 80), 1.0, 0.0)
    assert scene.outside[10:25, 30:50].all()
    result = rectify(scene.agl_m, 1.0, 0.0)
    assert (result.occlusion[10:25, 30:50] == UNKNOWN).all()


def test_no_data_is_unknown_and_does_not_spread() -> None:
    agl_m = np.zeros((60, 70), np.float32)
    agl_m[10:20, 10:20] = np.nan
    rgb = smooth_rgb(60, 70)
    result = rectify(agl_m, 1.0, 1.0, rgb)
    assert ((result.occlusion == UNKNOWN) == np.isnan(agl_m)).all()
    np.testing.assert_array_equal(result.agl_m, agl_m)
    assert result.rgb is not None
    np.testing.assert_array_equal(result.rgb[~np.isnan(agl_m)], rgb[~np.isnan(agl_m)])
    assert (rectify(np.full((5, 6), np.nan), 1.0, 0.0).occlusion == UNKNOWN).all()


def test_colours_move_with_their_surfaces() -> None:
    scene = render_boxes([Box(50.2, 50.2, 90.2, 90.2, 20.0)], (130, 140), 1.0, 0.0)
    rgb = np.zeros((130, 140, 3), np.uint8)
    rgb[scene.agl_m == 20.0] = (200, 10, 30)
    result = rectify(scene.agl_m, 1.0, 0.0, rgb)
    assert result.rgb is not None
    assert (result.rgb[52:89, 52:89] == (200, 10, 30)).all()
    assert not result.rgb[:49].any()
    assert not result.rgb[92:].any()
    assert (result.rgb[result.occlusion != SEEN] == 0).all()


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (1, 1), (333, 701), (2, 3)])
def test_any_shape(shape: tuple[int, int]) -> None:
    agl_m = heights(max(shape[0], 8), max(shape[1], 8), 1)[: shape[0], : shape[1]]
    result = rectify(agl_m, 0.8, 2.0, smooth_rgb(*shape))
    assert result.agl_m.shape == result.occlusion.shape == shape
    assert ((result.occlusion == SEEN) == ~np.isnan(result.agl_m)).all()


@pytest.mark.parametrize("tile_px", [17, 64, 100])
@pytest.mark.parametrize("angle_rad", [0.0, 0.9, 2.5, 4.1])
def test_windows_are_seamless(tile_px: int, angle_rad: float) -> None:
    agl_m = render_boxes(town((211, 187), 2), (211, 187), 1.4, angle_rad).agl_m
    agl_m += np.random.default_rng(1).normal(0, 0.5, agl_m.shape).astype(np.float32)
    agl_m[100:104, 60:90] = np.nan
    rgb = smooth_rgb(211, 187)
    whole = next(rectify_windows(agl_m, 1.4, angle_rad, rgb, 1000))[1]
    parts = Rectified(np.zeros_like(agl_m), np.zeros_like(rgb), np.full(agl_m.shape, 9, np.uint8))
    for window, part in rectify_windows(agl_m, 1.4, angle_rad, rgb, tile_px):
        parts.agl_m[window], parts.occlusion[window] = part.agl_m, part.occlusion
        assert parts.rgb is not None
        assert part.rgb is not None
        parts.rgb[window] = part.rgb
    _same(whole, parts)
    _same(whole, rectify(agl_m, 1.4, angle_rad, rgb))


def test_what_cannot_be_rectified() -> None:
    agl_m = np.zeros((4, 5), np.float32)
    with pytest.raises(InputError, match="infinite"):
        rectify(np.full((4, 5), np.inf), 1.0, 0.0)
    with pytest.raises(InputError, match="scale"):
        rectify(agl_m, -1.0, 0.0)
    with pytest.raises(InputError, match="angle nan"):
        rectify(agl_m, 1.0, math.nan)
    with pytest.raises(InputError, match="one size"):
        rectify(agl_m, 1.0, 0.0, np.zeros((5, 4, 3), np.uint8))


def test_angle_0_leads_down() -> None:
    """Angle 0 leads down the image, as the challenge's files have it."""
    agl_m = np.zeros((30, 30), np.float32)
    agl_m[5:8, 5:8] = 10.0
    assert (rectify(agl_m, 1.0, 0.0).agl_m[15:18, 5:8] == 10.0).all()
    assert (rectify(agl_m, 1.0, math.pi / 2).agl_m[5:8, 15:18] == 10.0).all()
