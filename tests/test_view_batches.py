"""Views go through a model in batches that fit; a lack of memory changes how many, not what."""

import pytest
import torch
from torch import Tensor, nn

from geopose.inference.predict.ensemble import PoseEnsemble
from geopose.inference.predict.tta import Prediction, Tta
from geopose.inference.predict.view_batches import ViewBatches
from geopose.inference.predict.weight_offload import WeightOffload

CPU = torch.device("cpu")


class Sized(nn.Module):
    """Height = first plane, scale = gsd; has memory for some images at once only."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen: list[int] = []

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        self.seen.append(len(image))
        if len(image) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")
        maps = image[:, :1].float()
        return Prediction(maps, maps, gsd_m, gsd_m * torch.tensor([[1.0, 2.0]]))


def looks(mode: str, count: int = 2, height: int = 6, width: int = 9):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)
    gsd_m = torch.rand(count, 1, generator=generator) + 0.2
    return [view.look(image, gsd_m) for view in Tta.from_name(mode).views]


def batches(room: int, limit: int, *sizes: tuple[int, int]) -> tuple[Sized, ViewBatches]:
    model = Sized(room)
    made = ViewBatches(model, WeightOffload(nn.ModuleList([model]), CPU))
    made._limits = {torch.Size(size): limit for size in sizes}
    return model, made


@pytest.mark.parametrize("room", [1, 3, 16])
def test_every_view_of_every_image_comes_back_once_and_right(room):
    shown = looks("d4")
    model, made = batches(room, 16, (6, 9), (9, 6))
    found = dict(made.predict(shown))
    assert sorted(found) == list(range(8))
    for number, look in enumerate(shown):
        assert torch.equal(found[number].agl_m, look.image[:, :1].float())
        assert torch.equal(found[number].scale_px_per_m, look.gsd_m)
    assert max(n for n in model.seen if n <= room) <= room


def test_a_lack_of_memory_halves_the_batch_for_good():
    model, made = batches(3, 8, (6, 6))
    for _ in range(2):
        list(made.predict(looks("d4", count=1, width=6)))
    assert model.seen == [8, 4, *[2] * 8]


def test_an_image_that_does_not_fit_alone_is_an_error():
    _, made = batches(0, 1, (6, 9), (9, 6))
    with pytest.raises(torch.OutOfMemoryError):
        list(made.predict(looks("fliplr")))


def test_batches_are_of_one_size():
    model, made = batches(16, 3, (6, 6))
    list(made.predict(looks("d4", count=1, width=6)))
    assert model.seen == [3, 3, 2]


@pytest.mark.parametrize("order", ["model", "ensemble"])
def test_an_ensemble_says_the_same_whatever_fits(order):
    image = torch.randint(0, 256, (2, 3, 8, 8)).to(torch.uint8)
    gsd_m = torch.tensor([[0.3], [0.6]])
    answers = []
    for limit in (1, 5):
        ensemble = PoseEnsemble([Sized(16), Sized(16)], Tta.from_name("d4"), order)
        for made in ensemble._batches:
            made._limits = {torch.Size((8, 8)): limit}
        answers.append(ensemble(image, gsd_m))
    for name in ("agl_m", "magnitude_px", "scale_px_per_m", "direction"):
        assert torch.equal(getattr(answers[0], name), getattr(answers[1], name))
