"""What the steps of the check share: networks, images, seconds, a count of waits."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from benchmarks.gpu_check.rows import ROOT
from geopose.checkpoints.formats.loaded import LoadedModel
from geopose.checkpoints.formats.pth import save_checkpoint
from geopose.inference.engines.backends import prepare
from geopose.inference.engines.folding import folded
from geopose.inference.predict.ensemble import Member, PoseEnsemble
from geopose.inference.predict.tta import Tta
from geopose.models.build import build_model
from geopose.system.devices import allow_tf32

HEIGHT_M = 20.0  # around which the networks' heights spread


@dataclass
class Waits:
    """How often the host waited for the device, by what the warning says."""

    count: int = 0
    places: dict[str, int] = field(default_factory=dict)


@contextmanager
def count_waits(device: torch.device) -> Iterator[Waits]:
    """Counts synchronising calls of a block, of all its threads; on a CPU there are none.

    torch warns of copies to and from pageable memory, `.item()` and the like; events that are
    waited for on purpose are not counted.
    """
    waits = Waits()
    if device.type != "cuda":
        yield waits
        return
    earlier = warnings.showwarning

    def count(message: Any, *rest: Any, **more: Any) -> None:
        if "synchronizing CUDA operation" not in str(message):
            earlier(message, *rest, **more)
            return
        waits.count += 1
        place = f"{rest[1]}:{rest[2]}"  # file and line
        waits.places[place] = waits.places.get(place, 0) + 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


def model_config(name: str) -> dict[str, Any]:
    """One of configs/model."""
    with initialize_config_dir(str(ROOT / "configs/model"), version_base="1.3"):
        config = OmegaConf.to_container(compose(name))
    config["encoder"]["pretrained"] = False  # type: ignore[index, call-overload]
    return config  # type: ignore[return-value]


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of random weights whose heights spread around HEIGHT_M."""
    torch.manual_seed(seed)
    model = build_model(model_config(name), load_pretrained=False).eval()
    for part in model.agl_head.modules():  # type: ignore[union-attr]
        if isinstance(part, nn.Conv2d) and part.out_channels == 1:
            part.weight.data *= 10.0
            part.bias.data.fill_(HEIGHT_M)  # type: ignore[union-attr]
    return model


def checkpoint(path: Path, name: str) -> Path:
    """A file of such a network."""
    config = {"model": model_config(name), "train": {"downsample": 1}}
    weights = network(name).state_dict()
    save_checkpoint(path, {"model_state_dict": weights, "checkpoint_data": {"config": config}})
    return path


@torch.inference_mode(False)  # weights that move between host and device must be ordinary tensors
def ensemble(
    name: str, precision: str, device: torch.device, tta: str | None = None, members: int = 1,
    backend: str = "torch",
) -> PoseEnsemble:  # fmt: skip
    """Networks of one kind on a device, as inference has them there."""
    if device.type == "cuda":
        allow_tf32(precision == "tf32")
        torch.backends.cudnn.benchmark = True
    models = []
    for seed in range(members):
        model = network(name, seed)
        if device.type == "cuda" and backend == "torch":
            model = folded(model)
        engine = prepare(model, backend, precision)
        models.append(Member(LoadedModel(engine, {}, "rgb", 1, False, name)))
    return PoseEnsemble(models, Tta.from_name(tta), "model", device).eval()


def image(size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture with noise, and its gsd."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 60, (1, 3, *size), generator=generator)
    y, x = (torch.arange(length) / 40 for length in size)
    smooth = 120 + 60 * torch.sin(y)[:, None] * torch.cos(x)[None]
    return (smooth + noise).to(torch.uint8).to(device), torch.full((1, 1), 0.5, device=device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Of one call, the median; not counted is a first one, which loads and searches."""
    took = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - started)
    return sorted(took[1:])[repeats // 2]
