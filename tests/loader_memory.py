"""What a training loader and its workers come to hold over epochs, in a process of its own.

`python -m tests.loader_memory DATA_DIR` prints the growth in MB of the loader as it is, then of one
that keeps 128 kB of every sample. A process that has run other things first would count those too:
pages it shares with the workers it forks become private whenever either of them touches them.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from geopose.construct import plain
from geopose.data.dataset import GeoposeDataset
from geopose.training.data.loaders import build_loaders
from geopose.training.data.resources import Resources
from tests.training_run import composed, tiny_overrides

EPOCHS = 30


def _memory_mb(loader: DataLoader) -> float:
    """What this process and the loader's workers hold, each page counted once."""
    workers = loader._iterator._workers  # type: ignore[union-attr]
    total = 0
    for pid in [os.getpid(), *(worker.pid for worker in workers)]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1])
    return total / 1024


def _growth_mb(loader: DataLoader) -> float:
    """From the tenth epoch, when everything has been used once, to the last."""
    before = 0.0
    for epoch in range(EPOCHS):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        for _ in loader:
            pass
        if epoch == 9:
            before = _memory_mb(loader)
    return _memory_mb(loader) - before


def _train_loader(data_dir: Path) -> DataLoader:
    more = ("train.augmentations=hard", "train.cache=false")
    cfg = plain(composed(*tiny_overrides(data_dir, Path("none"), *more)))
    return build_loaders(cfg, Resources(1, 0, 1), torch.device("cpu"))["train"]


def _keep_some_of_every_sample() -> None:
    kept: list[bytes] = []
    sample = GeoposeDataset._sample

    def leaky(self: GeoposeDataset, index: int) -> dict[str, Any]:
        kept.append(os.urandom(1 << 17))
        return sample(self, index)

    GeoposeDataset._sample = leaky  # type: ignore[method-assign]


if __name__ == "__main__":
    data = Path(sys.argv[1])
    print(_growth_mb(_train_loader(data)))
    _keep_some_of_every_sample()
    print(_growth_mb(_train_loader(data)))
