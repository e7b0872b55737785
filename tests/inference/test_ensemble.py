"""Ensembles of small analytic models: what each is given, and how answers are put together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geopose import keys
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


@pytest.mark.parametrize("downsample", [1, 2])
def test_a_common_gsd_is_what_the_network_is_shown_and_nothing_else_changes(downsample):
    image = random_image(16, 24)
    image[:, :, :, :] = torch.tensor([60, 200], dtype=torch.uint8)[:, None, None, None]
    plain = member()(image, GSD)
    loaded = LoadedModel(Recorder(), {}, "rgb", downsample, True, "test", gsd_m=0.5)
    for shown in (loaded, replace(loaded, gsd_m=1.0).reduced_by(2 * downsample)):
        chosen = Member(shown)
        for part in (slice(0, 1), slice(1, 2), slice(0, 2)):
            found = chosen(image[part], GSD[part])
            assert torch.allclose(chosen.model.gsd, torch.tensor(0.5 * chosen.downsample))
            side = 16 * float(GSD[part][-1]) / 0.5 / chosen.downsample
            assert chosen.model.image.shape[-2:] == (side, 1.5 * side)
            for value, expected in zip(found, plain, strict=True):
                if value.ndim == 2 and value.shape[1] == 2:  # a direction of any length
                    expected = nn.functional.normalize(expected)
                    value = nn.functional.normalize(value)
                torch.testing.assert_close(value, expected[part])


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
