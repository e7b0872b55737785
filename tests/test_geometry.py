"""Conventions of angle, flow, zoom and symmetry, proved on moved pixels."""

import math

import numpy as np
import pytest
import torch

from geopose.geometry import (
    SYMMETRIES,
    SYMMETRY,
    angle_difference,
    angle_to_vector,
    flow_map,
    flow_px,
    transform_gsd,
    transform_scale_angle,
    vector_to_angle,
    wrap_angle,
)


def test_angle_zero_points_down_and_quarter_turn_points_right() -> None:
    flow = flow_px(np.full((1, 1), 10.0), 2.0, 0.0)
    np.testing.assert_allclose(flow[:, 0, 0], [0.0, 20.0])
    flow = flow_px(np.full((1, 1), 10.0), 2.0, math.pi / 2)
    np.testing.assert_allclose(flow[:, 0, 0], [20.0, 0.0], atol=1e-12)


def test_angle_survives_the_vector_in_numpy_and_torch() -> None:
    angles = np.linspace(0, 2 * math.pi, 97)[:-1]
    np.testing.assert_allclose(vector_to_angle(3.0 * angle_to_vector(angles)), angles, atol=1e-12)
    moved = vector_to_angle(0.1 * angle_to_vector(torch.tensor(angles)))
    np.testing.assert_allclose(moved.numpy(), angles, atol=1e-12)


@pytest.mark.parametrize("angle", [-1e-17, -1e-9, 2 * math.pi, -2 * math.pi, 7.0])
def test_wrapped_angles_stay_below_a_full_turn(angle: float) -> None:
    wrapped = wrap_angle(angle)
    assert 0.0 <= wrapped < 2 * math.pi
    assert angle_difference(wrapped, angle) < 1e-8
    vector = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float32)
    assert 0.0 <= float(vector_to_angle(vector)) < 2 * math.pi


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=lambda s: s.name)
def test_symmetry_moves_pixels_as_it_moves_vectors(symmetry) -> None:  # type: ignore[no-untyped-def]
    image = np.zeros((5, 9))
    start, end = (1, 3), (3, 4)  # (row, column)
    image[start], image[end] = 1, 2
    moved = symmetry.apply_numpy(image)
    (r0, c0), (r1, c1) = np.argwhere(moved == 1)[0], np.argwhere(moved == 2)[0]
    vector = symmetry.linear @ np.array([end[1] - start[1], end[0] - start[0]])
    np.testing.assert_array_equal(vector, [c1 - c0, r1 - r0])
    tensor = symmetry.apply_torch(torch.from_numpy(image))
    np.testing.assert_array_equal(tensor.numpy(), moved)
    back = symmetry.inverse.apply_torch(tensor)
    np.testing.assert_array_equal(back.numpy(), image)
    vectors = symmetry.map_vectors(torch.tensor([[1.0, 2.0]]))
    np.testing.assert_array_equal(vectors[0].numpy(), vector)
    # Bit for bit in 16 bits as well: no number is multiplied.
    digits = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    back = symmetry.inverse.map_vectors(symmetry.map_vectors(digits))
    assert torch.equal(back, digits)


def test_the_eight_symmetries_differ_and_rot90_is_numpys() -> None:
    image = np.arange(12).reshape(3, 4)
    assert len({symmetry.apply_numpy(image).tobytes() for symmetry in SYMMETRIES}) == 8
    np.testing.assert_array_equal(SYMMETRY["rot90"].apply_numpy(image), np.rot90(image))
    np.testing.assert_array_equal(SYMMETRY["rot270"].apply_numpy(image), np.rot90(image, 3))


def test_zoom_moves_scale_and_gsd_in_opposite_ways() -> None:
    zoom = np.diag([1.25, 1.25])
    scale, angle = transform_scale_angle(2.0, 0.7, zoom)
    assert scale == pytest.approx(2.5)
    assert angle == pytest.approx(0.7)
    assert transform_gsd(0.5, zoom) == pytest.approx(0.4)


def test_zero_scale_keeps_a_direction() -> None:
    scale, angle = transform_scale_angle(0.0, 0.7, np.diag([-1.0, 1.0]))
    assert scale == 0.0
    assert angle == pytest.approx(2 * math.pi - 0.7)


def test_flow_map_points_along_the_direction() -> None:
    flow = flow_map(torch.full((2, 1, 2, 3), 5.0), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))
    assert flow.shape == (2, 2, 2, 3)
    torch.testing.assert_close(flow[0, :, 1, 2], torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(flow[1, :, 0, 0], torch.tensor([5.0, 0.0]))
