"""Training crops a second of one core: PNG + TIFF beside raw files, at every augmentation level.

    python benchmarks/input.py [--size 2048] [--crop 768] [--crops 40] [--repeats 3]

Two data directories of the same synthetic images are made in a temporary folder (or read from
--data-dir, which needs .j2k or PNG images with heights), one converted to PNG and one to raw. Both
take turns, so that whatever else the machine does disturbs both alike; every pair of samples is
compared bit for bit. Files are in the system's cache. The median of the repeats counts, in seconds
of CPU (a core that others use too does not count against either).
"""

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from geopose import keys  # noqa: E402
from geopose.augment.build import build_augmentation  # noqa: E402
from geopose.augment.levels import LEVELS  # noqa: E402
from geopose.convert import convert_directory  # noqa: E402
from geopose.data.dataset import GeoposeDataset  # noqa: E402
from geopose.data.layouts.splits import read_split  # noqa: E402
from geopose.sample_city.writer import write_dataset  # noqa: E402


def make_directories(root: Path, data_dir: Path | None, size: int) -> dict[str, Path]:
    """The data directory in both formats, by name."""
    source = data_dir or root / "source"
    if data_dir is None:
        write_dataset(source, train=1, test=0, size=size, seed=1)
    folders = {name: root / name for name in ("png", "raw")}
    for name, folder in folders.items():
        shutil.copytree(source, folder)
        convert_directory(folder, workers=1, progress=False, format_name=name)
    return folders


def cpu_seconds(dataset: GeoposeDataset, crops: int, first: int) -> float:
    """CPU time of a sample, in seconds."""
    start = time.process_time()
    for index in range(first, first + crops):
        dataset[index]
    return (time.process_time() - start) / crops


def assert_same(one: dict, other: dict) -> None:
    """Stops unless two samples are equal bit for bit."""
    for key in (keys.INPUT_IMAGE_KEY, keys.TARGET_AGL_MASK, keys.TARGET_VFLOW_ANGLE):
        np.testing.assert_array_equal(one[key].numpy(), other[key].numpy())


def measure(folders: dict, level: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds a sample of both formats, by repeat."""
    datasets = {
        name: GeoposeDataset(
            read_split(folder, "train"),
            "rgb",
            build_augmentation(level, arguments.crop),
            repeats=1000,
        )
        for name, folder in folders.items()
    }
    for index in range(4):
        assert_same(datasets["png"][index], datasets["raw"][index])
    times: dict[str, list[float]] = {name: [] for name in datasets}
    for repeat in range(arguments.repeats):
        for name, dataset in datasets.items():
            times[name].append(cpu_seconds(dataset, arguments.crops, repeat * arguments.crops))
    return times


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--crop", type=int, default=768)
    parser.add_argument("--crops", type=int, default=40, help="of every format and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one core, torch {torch.__version__}")
    print(
        "| level | PNG + TIFF, crops/s | raw, crops/s | ratio | PNG, ms a crop | raw, ms a crop |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        folders = make_directories(Path(root), arguments.data_dir, arguments.size)
        for level in arguments.levels:
            times = measure(folders, level, arguments)
            png, raw = (statistics.median(times[name]) for name in ("png", "raw"))
            print(
                f"| {level} | {1 / png:.1f} | **{1 / raw:.1f}** | {png / raw:.1f} | "
                f"{1e3 * png:.1f} | {1e3 * raw:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
