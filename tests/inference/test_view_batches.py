"""Views go through a model in batches that fit; a lack of memory changes how many, not what."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from geopose.inference.predict.ensemble import PoseEnsemble
from geopose.inference.predict.tta import Prediction, Tta, View
from geopose.inference.predict.view_batches import ViewBatches
from geopose.inference.predict.weight_offload import WeightOffload

CPU = torch.device("cpu")


class Sized(nn.Module):
    """Height = first plane, scale = gsd; has memory for some images at once only."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")
        self.seen: list[int] = []

    def forward(self, image: Tensor, gsd_m: Tensor) -> Prediction:
        self.seen.append(len(image))
        if len(image) > self.room:
            raise self.error
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


@pytest.mark.parametrize(
    "words", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory"]
)
def test_libraries_below_torch_lack_memory_too(words):
    model, made = batches(3, 8, (6, 6))
    model.error = RuntimeError(words)
    list(made.predict(looks("d4", count=1, width=6)))
    assert model.seen == [8, 4, *[2] * 4]


def test_other_errors_do_not_pass_for_a_lack_of_memory():
    model, made = batches(3, 8, (6, 6))
    model.error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        list(made.predict(looks("d4", count=1, width=6)))
    assert model.seen == [8]


def test_models_step_aside_where_views_brought_back_do_not_fit(monkeypatch):
    """Then all is done again, the same comes out, and no run is told of twice."""
    ensemble = PoseEnsemble([Sized(16), Sized(16)], Tta.from_name("d4"), "model")
    image, gsd_m = torch.randint(0, 256, (1, 3, 8, 8)).to(torch.uint8), torch.tensor([[0.3]])
    expected = ensemble(image, gsd_m)
    bring_back, calls, told = View.bring_back, [], []
    offload = ensemble._offload

    def full(self: View, *arguments: object) -> Prediction:
        calls.append(1)
        if len(calls) == 5:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return bring_back(self, *arguments)

    monkeypatch.setattr(View, "bring_back", full)
    monkeypatch.setattr(offload, "can_make_room", lambda: not offload.waiting)
    monkeypatch.setattr(offload, "at_work", lambda model: nullcontext())
    found = ensemble(image, gsd_m, lambda: told.append(1))
    assert offload.waiting
    assert len(told) == ensemble.runs
    assert torch.equal(found.agl_m, expected.agl_m)


def test_models_that_do_not_fit_at_the_start_wait_on_the_host(monkeypatch):
    """Weights were reckoned to fit, and another process took the memory meanwhile."""
    moves = []

    class Heavy(Sized):
        def to(self, device: object) -> "Heavy":
            moves.append(str(device))
            if str(device) == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self

    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (10**9, 10**9))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    offload = WeightOffload(nn.ModuleList([Heavy(1), Heavy(1)]), torch.device("cuda"))
    assert offload.waiting
    assert moves == ["cuda", "cpu", "cpu"]


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
