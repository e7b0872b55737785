"""Writes small data directories in the challenge's layout for tests. All pixels are made up."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import write_agl_cm
from geopose.data.layout import agl_name, vflow_name
from geopose.data.rgb import write_j2k, write_png
from geopose.data.vflow import write_vflow

REALDATA = Path(__file__).resolve().parents[1] / "../shared/realdata"


def smooth_rgb(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colourful image, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.2, 1.5, (3, 3))]
    return (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def heights(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Blocks of heights with a little no-data."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 30, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    agl_m = np.kron(blocks, np.ones((8, 8), np.float32))[:height, :width]
    agl_m[: height // 8, : width // 8] = np.nan
    return np.ascontiguousarray(agl_m)


def write_data_dir(
    root: Path, cities: list[str], size: tuple[int, int] = (64, 64), suffix: str = ".j2k"
) -> Path:
    """One training image for each entry of `cities`, and the CSV files."""
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    meta, rows = ["id,city,gsd"], ["id,agl,json,rgb"]
    for number, city in enumerate(cities):
        rgb = f"{city}_{number:03d}_RGB{suffix}"
        write = write_png if suffix == ".png" else write_j2k
        write(root / "train" / rgb, smooth_rgb(*size, number))
        write_agl_cm(root / "train" / agl_name(rgb), heights(*size, number), allow_nodata=True)
        write_vflow(root / "train" / vflow_name(rgb), 1.5 + number % 50 / 10, 0.3 * number)
        meta.append(f"{number:03d},{city},0.5")
        rows.append(f"{number:03d},{agl_name(rgb)},{vflow_name(rgb)},{rgb}")
    (root / "metadata.csv").write_text("\n".join(meta) + "\n")
    (root / "geopose_train.csv").write_text("\n".join(rows) + "\n")
    return root
