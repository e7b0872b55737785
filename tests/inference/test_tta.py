"""Test-time augmentation on models whose answers are exact functions of the image."""

import numpy as np
import pytest
import torch

from geopose.errors import InputError
from geopose.geometry import SYMMETRIES, angle_to_vector
from geopose.inference.predict.tta import TTA_NAMES, Prediction, Tta

SYMMETRY_MODES = [None, "fliplr", "flips", "d2", "d4"]
VIEW_COUNTS = {
    None: 1,
    "fliplr": 2,
    "flips": 3,
    "d2": 4,
    "d4": 8,
    "ms": 3,
    "d4-ms": 24,
}


def moments(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
    """Height = brightness, direction = from the centre to the centroid: moves with the image."""
    light = image.double().mean(1, keepdim=True)
    height, width = image.shape[-2:]
    total = light.sum((1, 2, 3))
    x = (light.sum((1, 2)) * (torch.arange(width) - (width - 1) / 2)).sum(-1) / total
    y = (light.sum((1, 3)) * (torch.arange(height) - (height - 1) / 2)).sum(-1) / total
    scale = light.mean((1, 2, 3))[:, None] / gsd_m
    return Prediction(light, light * scale[..., None, None], scale, torch.stack([x, y], -1))


def corner(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
    """Answers depend on the orientation: scale is one off-axis pixel, direction is constant."""
    count = image.shape[0]
    agl_m = image[:, :1].double() + torch.arange(image.shape[-1])
    direction = torch.tensor([[3.0, 4.0]], dtype=torch.float64).expand(count, 2)
    return Prediction(agl_m, agl_m * 2, image[:, 0, 0, 1:2].double(), direction)


def random_batch(
    count: int = 3, height: int = 5, width: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(count, 3, height, width, generator=generator, dtype=torch.float64) + 0.1
    return image, torch.rand(count, 1, generator=generator, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=lambda s: s.name)
def test_every_view_undoes_itself_on_an_equivariant_model(symmetry):
    image, gsd_m = random_batch()
    expected = moments(image, gsd_m)
    view = next(view for view in Tta.from_name("d4").views if view.symmetry == symmetry)

    found = view.predict(moments, image, gsd_m)

    torch.testing.assert_close(found.agl_m, expected.agl_m)
    torch.testing.assert_close(found.magnitude_px, expected.magnitude_px)
    torch.testing.assert_close(found.scale_px_per_m, expected.scale_px_per_m)
    torch.testing.assert_close(found.angle_rad, expected.angle_rad)


@pytest.mark.parametrize("name", [*SYMMETRY_MODES, "d4-gmean"])
def test_mean_of_an_equivariant_model_is_its_plain_answer(name):
    image, gsd_m = random_batch()
    expected = moments(image, gsd_m)

    found = Tta.from_name(name)(moments, image, gsd_m)

    torch.testing.assert_close(found.agl_m, expected.agl_m)
    torch.testing.assert_close(found.magnitude_px, expected.magnitude_px)
    torch.testing.assert_close(found.scale_px_per_m, expected.scale_px_per_m)
    torch.testing.assert_close(found.angle_rad, expected.angle_rad)


def test_d4_counts_each_of_the_eight_views_once():
    image, gsd_m = random_batch(count=1, height=6, width=9)
    plane = image[0, 0].numpy()
    # Where the pixel right of the top left corner comes from, for all eight ways to hold the image.
    held = [np.rot90(p, k) for p in (plane, plane[:, ::-1]) for k in range(4)]
    assert len({view[0, 1] for view in held}) == 8

    found = Tta.from_name("d4")(corner, image, gsd_m)

    assert found.scale_px_per_m.item() == pytest.approx(np.mean([view[0, 1] for view in held]))


@pytest.mark.parametrize("name", ["fliplr", "flips", "d2"])
def test_mean_of_flips_against_numpy(name):
    """Heights, magnitude and direction of a model that is not equivariant, flip by flip."""
    image, gsd_m = random_batch(count=2, height=4, width=7)
    flips = {"fliplr": [(1, 1), (-1, 1)], "flips": [(1, 1), (-1, 1), (1, -1)]}
    flips["d2"] = [*flips["flips"], (-1, -1)]
    plane = image[:, 0].numpy()
    heights, vectors = [], []
    for x, y in flips[name]:
        ramp = np.arange(7)[::x]
        heights.append(plane + ramp)
        vectors.append([0.6 * x, 0.8 * y])

    found = Tta.from_name(name)(corner, image, gsd_m)

    np.testing.assert_allclose(found.agl_m[:, 0], np.mean(heights, axis=0))
    np.testing.assert_allclose(found.magnitude_px[:, 0], 2 * np.mean(heights, axis=0))
    np.testing.assert_allclose(found.direction, np.tile(np.mean(vectors, axis=0), (2, 1)))


def test_directions_are_averaged_as_unit_vectors():
    """Angles 350 and 30 degrees, one with a vector a hundred times longer: the mean is 10."""
    answers = iter([(350.0, 100.0), (330.0, 1.0)])  # the second seen in the mirror: 30 degrees

    def model(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
        angle, length = next(answers)
        maps = image[:, :1]
        return Prediction(
            maps, maps, gsd_m, length * angle_to_vector(torch.tensor([np.deg2rad(angle)]))
        )

    image, gsd_m = random_batch(count=1)
    found = Tta.from_name("fliplr")(model, image, gsd_m)

    assert np.rad2deg(found.angle_rad.item()) == pytest.approx(10.0, abs=1e-4)


@pytest.mark.parametrize("name", [*SYMMETRY_MODES, "ms", "d4-ms", "d2-gmean"])
def test_a_batch_gives_what_single_images_give(name):
    image, gsd_m = random_batch(count=3, height=6, width=10)
    tta = Tta.from_name(name)

    together = tta(corner, image.float(), gsd_m.float())

    for item in range(3):
        alone = tta(corner, image[item : item + 1].float(), gsd_m[item : item + 1].float())
        assert torch.equal(together.agl_m[item], alone.agl_m[0])
        assert torch.equal(together.scale_px_per_m[item], alone.scale_px_per_m[0])
        assert torch.equal(together.direction[item], alone.direction[0])


@pytest.mark.parametrize("size", [(600, 600), (400, 700), (90, 60)])
def test_zoomed_views_agree_on_a_smooth_image(size):
    """A pixel-true model: flow in pixels grows as gsd shrinks; heights stay where they are."""

    def model(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
        agl_m = image[:, :1]
        scale = 0.5 / gsd_m
        return Prediction(
            agl_m, agl_m * scale[..., None, None], scale, moments(image, gsd_m).direction
        )

    y, x = torch.meshgrid(*(torch.linspace(0, 3, side) for side in size), indexing="ij")
    image = (10 + 5 * torch.sin(x) * torch.cos(y + x)).expand(2, 3, *size)
    gsd_m = torch.tensor([[0.3], [0.5]])
    expected = model(image, gsd_m)

    for view in Tta.from_name("d4-ms").views:
        found = view.predict(model, image, gsd_m)
        inside = (..., slice(4, -4), slice(4, -4))  # there is nothing to interpolate with outside
        for field in ("agl_m", "magnitude_px"):
            maps, wanted = getattr(found, field)[inside], getattr(expected, field)[inside]
            torch.testing.assert_close(maps, wanted, atol=0.05, rtol=0)
        torch.testing.assert_close(found.scale_px_per_m, expected.scale_px_per_m)
        torch.testing.assert_close(found.angle_rad, expected.angle_rad, atol=3e-3, rtol=0)


def test_zoom_hands_the_model_a_larger_image_with_a_smaller_gsd():
    seen = []

    def model(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
        seen.append((image.shape[-1], gsd_m.item()))
        return moments(image, gsd_m)

    image = torch.rand(1, 3, 512, 1024)
    Tta.from_name("ms")(model, image, torch.tensor([[0.5]]))

    assert [width for width, _ in seen] == [1024, 768, 1280]
    assert [gsd for _, gsd in seen] == pytest.approx([0.5, 0.5 / 0.75, 0.5 / 1.25])


def test_geometric_mean_of_heights_only():
    answers = iter([(2.0, 0.0), (8.0, 5.0)])

    def model(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
        first, second = next(answers)
        agl_m = torch.tensor([[[[first, second]]]])
        # The second view is mirrored, so its own answer is as well.
        agl_m = agl_m if first == 2.0 else agl_m.flip(-1)
        return Prediction(agl_m, agl_m, torch.tensor([[first]]), torch.tensor([[0.0, 1.0]]))

    found = Tta.from_name("fliplr-gmean")(model, torch.zeros(1, 3, 1, 2), torch.ones(1, 1))

    torch.testing.assert_close(found.agl_m, torch.tensor([[[[4.0, 0.0]]]]))
    torch.testing.assert_close(found.magnitude_px, torch.tensor([[[[5.0, 2.5]]]]))
    assert found.scale_px_per_m.item() == 5.0


def test_a_missing_number_in_one_view_is_not_averaged_away():
    def model(image: torch.Tensor, gsd_m: torch.Tensor) -> Prediction:
        prediction = corner(image, gsd_m)
        prediction.agl_m[0, 0, 0, 0] = float("nan")
        return prediction

    for name in ("d4", "d4-gmean"):
        found = Tta.from_name(name)(model, *random_batch(count=1))
        assert torch.isnan(found.agl_m).sum() == 4  # the four corners


def test_modes_have_their_number_of_views():
    assert {mode: len(Tta.from_name(mode).views) for mode in TTA_NAMES} == VIEW_COUNTS


@pytest.mark.parametrize(
    "name", ["d5", "D4", "", "null", "-gmean", 4, True, ["d4"], "d4-gmean-gmean"]
)
def test_unknown_modes_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=r"fliplr, flips, d2, d4, ms, d4-ms") as caught:
        Tta.from_name(name)
    assert "\n" not in str(caught.value)
