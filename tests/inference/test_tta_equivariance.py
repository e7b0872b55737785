"""Every mode of test-time augmentation on a model whose answer is an exact function of the image.

Height is the image's brightness, the direction is that from its centre to its centroid, the scale
follows from gsd. A view, and so the mean of views, must answer as the plain model does.
"""

import pytest
import torch
from torch import Tensor

from geopose.inference.predict.ensemble import TTA_MODES, PoseEnsemble
from geopose.inference.predict.tta import TTA_NAMES, Prediction, Tta

MODES = [mode for mode in TTA_NAMES if mode is not None]
NAMES = [None, *MODES, *(f"{mode}-gmean" for mode in MODES)]
SIZES = ((64, 64), (61, 97), (150, 48), (530, 400))


def moments(image: Tensor, gsd_m: Tensor) -> Prediction:
    """Exact answers of N x 3 x H x W images; the first moment turns and flips as they do."""
    light = image.double().mean(1, keepdim=True)
    height, width = image.shape[-2:]
    x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) / width
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2) / width
    direction = torch.stack([(light * x).mean((1, 2, 3)), (light * y[:, None]).mean((1, 2, 3))], -1)
    scale = 0.5 / gsd_m.double()
    return Prediction(light, light * scale[..., None, None], scale, direction)


class Moments(torch.nn.Module):
    """The same as a member of an ensemble; heights by a factor of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        answer = moments(image, gsd_m)
        return Prediction(
            answer.agl_m * self.factor, answer.magnitude_px, answer.scale_px_per_m, answer.direction
        )


def smooth(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bright images without symmetry, smooth enough to be resized, and their gsd."""
    y, x = torch.meshgrid(*(torch.linspace(0, 2, side) for side in size), indexing="ij")
    phases = torch.arange(count, dtype=torch.float32)[:, None, None]
    image = 10 + 4 * torch.sin(x + phases) * torch.cos(0.7 * y - phases) + x - 0.5 * y
    return image[:, None].expand(-1, 3, -1, -1), 0.3 + 0.1 * torch.arange(count)[:, None]


def assert_same(found: Prediction, expected: Prediction, zoomed: bool) -> None:
    """Equal; within what resizing to whole pixels costs where a view is zoomed."""
    maps, angle = (0.05, 5e-3) if zoomed else (1e-5, 1e-5)
    edge = 6 if zoomed else 0  # there is nothing to interpolate with outside
    inside = (..., slice(edge, -edge or None), slice(edge, -edge or None))
    for name in ("agl_m", "magnitude_px"):
        values, wanted = getattr(found, name), getattr(expected, name)
        assert values.shape == wanted.shape
        torch.testing.assert_close(
            values[inside], wanted[inside].to(values.dtype), atol=maps, rtol=1e-5
        )
    torch.testing.assert_close(
        found.scale_px_per_m.double(), expected.scale_px_per_m, rtol=1e-5, atol=0
    )
    turned = torch.remainder(found.angle_rad - expected.angle_rad + torch.pi, 2 * torch.pi)
    assert (turned - torch.pi).abs().max() < angle


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_the_mean_of_any_mode_is_the_plain_answer(name: str | None, size: tuple[int, int]) -> None:
    tta = Tta.from_name(name)
    for count in (1, 3):
        image, gsd_m = smooth(count, size)
        expected = moments(image, gsd_m)
        assert_same(
            tta(moments, image, gsd_m),
            expected,
            zoomed="ms" in (name or ""),
        )


@pytest.mark.parametrize("order", TTA_MODES)
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_ensembles_in_either_order(name: str | None, order: str) -> None:
    image, gsd_m = smooth(2, (61, 97))
    found = PoseEnsemble([Moments(1.0), Moments(2.0)], Tta.from_name(name), order)(image, gsd_m)
    answer = moments(image, gsd_m)
    expected = Prediction(
        answer.agl_m * 1.5, answer.magnitude_px, answer.scale_px_per_m, answer.direction
    )
    assert_same(found, expected, zoomed="ms" in (name or ""))
