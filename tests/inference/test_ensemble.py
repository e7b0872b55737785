"""Ensembles of small analytic models: what each is given, and how answers are put together."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geopose import keys
from geopose.augment.common_gsd import Resize
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.errors import InputError
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Prediction, Tta
from geopose.models.normalization import Normalization, normalize_image


class Recorder(nn.Module):
    """Height = first input plane, scale = 0.5 / gsd; keeps what it was given."""

    def forward(self, image: Tensor, gsd: Tensor) -> dict[str, Tensor]:
        self.image, self.gsd = image, gsd
        agl_m, scale = image[:, :1], 0.5 / gsd
        return {
            keys.OUTPUT_AGL_MASK: agl_m,
            keys.OUTPUT_MAGNITUDE_MASK: agl_m * scale[..., None, None],
            keys.OUTPUT_VFLOW_SCALE: scale,
            keys.OUTPUT_VFLOW_DIRECTION: torch.tensor([[3.0, 4.0]]).expand(len(image), 2),
        }


def member(order: str = "rgb", downsample: int = 1, converted: bool = True) -> Member:
    return Member(LoadedModel(Recorder(), {}, order, downsample, converted, "test"))


def random_image(height: int = 7, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


GSD = torch.tensor([[0.25], [0.5]])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_member_gets_exactly_what_it_was_trained_on(order):
    image = random_image()
    chosen = member(order)
    chosen(image, GSD)
    trained_on = torch.stack([normalize_image(i.permute(1, 2, 0).numpy(), order) for i in image])
    torch.testing.assert_close(chosen.model.image, trained_on)
    assert torch.equal(chosen.model.gsd, GSD)


def test_members_of_both_orders_work_side_by_side():
    image = random_image()
    image[:, 0], image[:, 2] = 200, 50  # R, B
    found = PoseEnsemble([member("rgb"), member("bgr")], Tta.from_name(None))(image, GSD)
    expected = (np.array([200, 50]) - 255 * 0.485) / (255 * 0.229)
    np.testing.assert_allclose(found.agl_m, expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("converted", [True, False])
def test_half_resolution_models(converted):
    """Trained here: all pixels are the reduced image's. Published: labels were not reduced."""
    image = random_image(8, 12)
    plain = member()(image, GSD)
    chosen = member(downsample=2, converted=converted)

    found = chosen(image, GSD)

    assert chosen.model.image.shape[-2:] == (4, 6)
    assert torch.equal(chosen.model.gsd, GSD * 2 if converted else GSD)
    torch.testing.assert_close(found.scale_px_per_m, plain.scale_px_per_m)
    reduced = chosen.model.image[:, :1]
    torch.testing.assert_close(reduced, nn.functional.avg_pool2d(plain.agl_m, 2))
    assert found.agl_m.shape == plain.agl_m.shape
    ratio = found.magnitude_px / found.agl_m
    torch.testing.assert_close(ratio, found.scale_px_per_m[..., None, None].expand_as(ratio))


def at_one_gsd(gsd_m: float) -> Member:
    return Member(LoadedModel(Recorder(), {}, "rgb", 1, True, "test", gsd_m=gsd_m))


def test_a_common_gsd_is_what_the_network_is_shown_and_nothing_else_changes():
    image = random_image(16, 24)
    image[:, :, :, :] = torch.tensor([60, 200], dtype=torch.uint8)[:, None, None, None]
    plain = member()(image, GSD)
    chosen = at_one_gsd(0.4)
    for part in (slice(0, 1), slice(1, 2), slice(0, 2)):
        found = chosen(image[part], GSD[part])
        torch.testing.assert_close(chosen.model.gsd, torch.tensor([[0.4]]), rtol=0, atol=0.01)
        side = round(16 * float(GSD[part][-1]) / 0.4)
        assert chosen.model.image.shape[-2:] == (side, 1.5 * side)
        for value, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(value, expected[part])


@pytest.mark.parametrize("gsd_m", [0.1, 0.18, 0.3, 0.5])
def test_finer_images_look_as_coarser_sensors_see_them(gsd_m):
    """Of noise, a pixel of 0.5 m is a mean over what falls together, and not one of those."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 3, 400, 400), generator=generator, dtype=torch.uint8)
    chosen = at_one_gsd(0.5)
    chosen(noise, torch.tensor([[gsd_m]]))
    spread = float(chosen.model.image.std(dim=(-2, -1)).mean() * 0.226 * 255)
    # A triangle over twice the pixel leaves 2 / (3 n) of it where n x n fall together.
    assert 0.6 < spread / (73.9 * gsd_m / 0.5) < (1.05 if gsd_m == 0.5 else 0.85)


def test_training_and_predictions_show_a_network_the_same_pixels():
    rgb = random_image(61, 83)[0].permute(1, 2, 0).numpy()
    for gsd_m in (0.2, 0.37, 0.5, 0.9):
        chosen = at_one_gsd(0.5)
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None]
        chosen(image, torch.tensor([[gsd_m]]))
        trained_on = Resize.between(rgb.shape[:2], gsd_m, 0.5).rgb(rgb)
        expected = normalize_image(trained_on, "rgb")[None]
        torch.testing.assert_close(chosen.model.image, expected, rtol=0, atol=0.02)  # a grey value


def test_what_means_nothing_at_a_common_gsd_is_refused():
    chosen = at_one_gsd(0.5)
    with pytest.raises(InputError, match=r"test: .*0\.5 m per pixel.*use those of d4"):
        PoseEnsemble([member(), chosen], Tta.from_name("d4-ms"))
    with pytest.raises(InputError, match=r"test: .*one of 20 m would be enlarged 40 times"):
        chosen(random_image(), torch.tensor([[20.0], [20.0]]))
    with pytest.raises(InputError, match=r"downsample is 2.*leave downsample out"):
        LoadedModel(Recorder(), {}, "rgb", 1, True, "test", gsd_m=0.5).reduced_by(2)


@pytest.mark.parametrize("factor", [2, 3])
def test_reduction_of_any_size_does_not_shift(factor):
    """A ramp survives the way down and up wherever no edge is near."""
    ramp = (torch.arange(41)[None] * 3 + torch.arange(29)[:, None] * 2).to(torch.uint8)
    image = ramp.expand(1, 3, 29, 41)
    found = member(downsample=factor)(image, GSD[:1])
    plain = member()(image, GSD[:1])
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found.agl_m[inside], plain.agl_m[inside], atol=1e-4, rtol=0)


class Fixed(nn.Module):
    """Says the same of every view, but for the directions, which take turns."""

    def __init__(self, agl_m: float, scale: float, *directions: tuple[float, float]) -> None:
        super().__init__()
        self.agl_m, self.scale, self.directions, self.calls = agl_m, scale, directions, 0

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        direction = torch.tensor([self.directions[self.calls % len(self.directions)]])
        self.calls += 1
        maps = torch.full((1, 1, 2, 2), self.agl_m)
        return Prediction(maps, maps, torch.tensor([[self.scale]]), direction)


def unit(vector) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


MIRROR = np.array([-1, 1])
FIRST, SECOND, THIRD = (3.0, 4.0), (8.0, 0.1), (-0.5, 0.2)


@pytest.mark.parametrize("order", ["model", "ensemble"])
def test_directions_are_normalised_before_each_stage(order):
    """Two views of two models; the second model always looks the same way. Both orders differ."""
    members = [Fixed(2.0, 1.0, FIRST, SECOND), Fixed(4.0, 3.0, THIRD)]
    found = PoseEnsemble(members, Tta.from_name("fliplr"), order)(torch.zeros(1, 3, 2, 2), GSD[:1])

    a = [unit(FIRST), unit(SECOND) * MIRROR]
    b = [unit(THIRD), unit(THIRD) * MIRROR]
    stages = [a, b] if order == "model" else [[a[0], b[0]], [a[1], b[1]]]
    expected = np.mean([unit(np.mean(stage, axis=0)) for stage in stages], axis=0)
    np.testing.assert_allclose(found.direction[0], expected, rtol=1e-5)
    assert found.agl_m.mean().item() == 3.0
    assert found.scale_px_per_m.item() == 2.0


def test_three_members_count_alike():
    members = [Fixed(agl_m, 1.0, (0.0, 1.0)) for agl_m in (1.0, 2.0, 6.0)]
    for order in ("model", "ensemble"):
        found = PoseEnsemble(members, Tta.from_name("d4"), order)(torch.zeros(1, 3, 2, 2), GSD[:1])
        torch.testing.assert_close(found.agl_m, torch.full((1, 1, 2, 2), 3.0))


def test_impossible_ensembles():
    with pytest.raises(InputError, match=r"ensemble\.models"):
        PoseEnsemble([], Tta.from_name(None))
    with pytest.raises(InputError, match=r"model, ensemble"):
        PoseEnsemble([member()], Tta.from_name(None), "both")


def test_a_members_normalisation_is_its_own():
    own = Normalization((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    image = random_image()
    chosen = Member(LoadedModel(Recorder(), {}, "bgr", 1, True, "test", normalization=own))
    chosen(image, GSD)
    wanted = [normalize_image(i.permute(1, 2, 0).numpy(), "bgr", own) for i in image]
    torch.testing.assert_close(chosen.model.image, torch.stack(wanted))
