"""What a step of the check is given, and the lines of the table that it makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """A line of the table; `good` is None where there is nothing to pass."""

    what: str
    value: str
    good: bool | None = None


@dataclass(frozen=True)
class Job:
    """Where a step runs and how large it is.

    Attributes:
        device: of the step.
        folder: its files go there.
        networks: of configs/model. sizes: height and width of images to compare.
        images: how many until memory and waits are looked at, twice.
        side: of the square test images. train: arguments of train.py, for 20 updates.
        precisions: that are compared. workers: processes that read.
    """

    device: torch.device
    folder: Path
    networks: tuple[str, ...] = ("b6_rdtsc_unet", "b7_unet")
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (1000, 760))
    images: tuple[int, int] = (5, 30)
    side: int = 512
    train: tuple[str, ...] = (
        "model=b6_rdtsc_unet", "train.crop_size=256", "batch_size=2", "train.crops_per_image=10",
    )  # fmt: skip
    precisions: tuple[str, ...] = ("fp32", "tf32", "bf16", "fp16")
    workers: int = 2

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"


def small(folder: Path) -> Job:
    """A job of seconds on a CPU, which shows that the steps themselves are right."""
    network = ("model=sample_unet", "model.encoder.name=test_efficientnet", "train.crop_size=64")
    return Job(
        torch.device("cpu"), folder, ("sample_unet",), ((64, 64), (50, 38)), (1, 2), 64,
        (*network, "batch_size=1", "train.crops_per_image=1"), ("fp32", "bf16"), 0,
    )  # fmt: skip
