"""What a run says it did is what it did: precision, directions, sizes."""

from pathlib import Path

import pytest
import torch

from geopose import keys
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.errors import InputError, RunError
from geopose.inference import build
from geopose.inference.config import load_config
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Tta, real_directions
from tests.tiny_run import write_checkpoint, write_config


class Fixed(torch.nn.Module):
    """Says the same of every image."""

    def __init__(self, direction: list[float], size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.direction, self.size = torch.tensor(direction), size

    def forward(self, image: torch.Tensor, gsd_m: torch.Tensor) -> dict[str, torch.Tensor]:
        count = len(image)
        maps = torch.ones(count, 1, *(self.size or image.shape[-2:]))
        return {
            keys.OUTPUT_AGL_MASK: maps,
            keys.OUTPUT_MAGNITUDE_MASK: maps,
            keys.OUTPUT_VFLOW_SCALE: torch.ones(count, 1),
            keys.OUTPUT_VFLOW_DIRECTION: self.direction.expand(count, 2),
        }


def member(direction: list[float], size: tuple[int, int] | None = None) -> Member:
    return Member(LoadedModel(Fixed(direction, size), {}, "rgb", 1, True, "a.onnx"))


def angle(*directions: list[float], tta: str | None = None, mode: str = "model") -> float:
    ensemble = PoseEnsemble([member(d) for d in directions], Tta.from_name(tta), mode)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    return float(ensemble(image, torch.ones(1, 1)).angle_rad)


INF = float("inf")
NONE = [[0.0, 0.0], [1e-30, 0.0], [float("nan"), 1.0], [INF, 1.0], [INF, -INF]]


@pytest.mark.parametrize("mode", ["model", "ensemble"])
@pytest.mark.parametrize("tta", [None, "d4"])
@pytest.mark.parametrize("direction", NONE)
def test_no_direction_is_no_angle(direction: list[float], tta: str | None, mode: str) -> None:
    assert angle(direction, tta=tta, mode=mode) != angle(direction, tta=tta, mode=mode)  # NaN
    assert angle([0.0, 1.0], direction, tta=tta, mode=mode) != 0.0


def test_directions_that_cancel_out() -> None:
    value = angle([0.0, 1.0], [0.0, -1.0])
    assert value != value


@pytest.mark.parametrize("length", [1e-9, 1.0, 1e15])
def test_any_length_is_a_direction(length: float) -> None:
    assert angle([length, 0.0]) == pytest.approx(torch.pi / 2)
    vectors = torch.tensor([[3.0, 4.0]]) * length
    assert torch.equal(real_directions(vectors), vectors)


@pytest.mark.parametrize("size", [(16, 16), (32, 31), (64, 64)])
def test_outputs_of_another_size(size: tuple[int, int]) -> None:
    ensemble = PoseEnsemble([member([0.0, 1.0], size)], Tta.from_name(None))
    with pytest.raises(RunError, match=r"a\.onnx: gives agl_m of \[1, 1, "):
        ensemble(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.ones(1, 1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_onnx_file_is_not_noted_as_what_it_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    write_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.onnx").write_bytes(b"never read here")
    monkeypatch.setattr(build, "resolve_precision", lambda wanted, device: wanted)
    device = torch.device("cpu")
    models = [tmp_path / "a.pth", tmp_path / "b.onnx"]
    config = load_config(write_config(tmp_path / "c.yaml", models, precision=precision))
    with pytest.raises(InputError, match=r"models\[1\]: .*b\.onnx computes in float32"):
        build.numerics(config, device)
    plain = load_config(write_config(tmp_path / "d.yaml", models, precision="fp32"))
    assert build.numerics(plain, device) == {"precision": "fp32"}
