"""Which products a run makes, and what becomes of its images in the end."""

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geopose.imagery.files.raster import create_raster, windows
from geopose.products.predicted import PredictedImage


@dataclass(frozen=True)
class ProductOptions:
    """TEMP"""

    words: str = "agl"
    wants_uncertainty: bool = True

    def writer(self, folder: Path) -> Callable[[PredictedImage], Sequence[Path]]:
        def write(image: PredictedImage) -> Sequence[Path]:
            path = folder / f"{image.stem}_AGL.tif"
            with create_raster(path, *image.shape, 1, np.float32, nodata=float("nan"), georeference=image.georeference) as w:
                for win in windows(*image.shape, 1024):
                    w.write(image.agl_m[win], win[0].start, win[1].start)
            print(image.flows)
            return [path]
        return write

    def conclude(self, folder: Path, done: Sequence[str]) -> tuple[Path, str]:
        return folder, f"products of {len(done)} images"


def add_product_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--products")


def product_options(arguments: Namespace) -> ProductOptions:
    return ProductOptions()

@dataclass
class Chosen:
    config: object
    words: str = "x"
    def gsd_range_m(self): return (0.3, 0.6)

def resolve_model(name, out, tta=None, precision=None, num_workers=None):
    from geopose.inference.config import load_config, InferenceConfig, ModelEntry
    from geopose.checkpoints.remote.fetch import Source
    return Chosen(InferenceConfig(source=Path(name), models=(ModelEntry((Source(name, None),)),), submission_dir=out, tta=tta, precision=precision or "auto"))
