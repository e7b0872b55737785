"""Takes tiles of images as they come; with its last one an image's products are written."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from geopose.errors import GeoposeError, RunError, StorageError
from geopose.files.atomic import scratch_path
from geopose.files.stamp import FileStamp, SourceStamp
from geopose.inference.images.flows import TileFlow, choose
from geopose.inference.images.mosaic import Mosaic, MosaicMap
from geopose.inference.images.source import ImageTask, Tile, resized
from geopose.inference.pipeline.task import Part
from geopose.inference.predict.tta import Prediction
from geopose.inference.resume.manifest import Journal, Record
from geopose.products.predicted import PredictedImage
from geopose.products.write import discard_products

logger = logging.getLogger(__name__)

AGL, MAGNITUDE, SPREAD = range(3)

# Writes an image's products into the run's folder and returns their files.
WriteProducts = Callable[[PredictedImage], Sequence[Path]]


@dataclass
class _Open:
    """An image of which some tiles are there."""

    mosaic: Mosaic
    files: ExitStack  # the mosaic's
    left: int
    source: SourceStamp | None = None
    tiles: list[TileFlow] = field(default_factory=list)


@dataclass
class ImageOutputs:
    """Tiles in, products out; safe to use from several threads.

    Attributes:
        folder: of the products, exists already.
        settings: fingerprint that goes into the records.
        journal: takes the records.
        write_products: what becomes of a finished image.
        flow: which one is used, see `choose`.
        from_angles: whether sensors' flow is by the user's angles.
        local_flow: also the flow of each tile.
        spread: how far views and models differ is wanted, and there are several.
        facts: of the run, for tags.
    """

    folder: Path
    settings: str
    journal: Journal
    write_products: WriteProducts
    flow: str
    from_angles: bool
    local_flow: bool
    spread: bool
    facts: dict[str, str]

    def __post_init__(self) -> None:
        self._images: dict[str, _Open] = {}
        self._failed: set[str] = set()
        self._lock = threading.RLock()

    @property
    def wants_spread(self) -> bool:
        """See `Outputs`."""
        return self.spread

    def skips(self, part: Part) -> bool:
        """Tiles of an image that has failed."""
        return part.task.name in self._failed

    def fields(self, prediction: Prediction, spread_m: Tensor | None) -> list[Tensor]:
        """Maps (N x 2 or 3 x H x W: m, px, m), and N x 3: scale and unit direction (x, y)."""
        maps = [prediction.agl_m, prediction.magnitude_px]
        maps += [] if spread_m is None else [spread_m]
        direction = F.normalize(prediction.direction, dim=-1)
        flow = torch.cat([prediction.scale_px_per_m, direction], dim=1).double()
        return [torch.cat(maps, dim=1).float(), flow]

    def write(self, part: Part, fields: Sequence[Tensor]) -> bool:
        """Takes a tile; with an image's last one its products are written.

        Raises:
            StorageError: the image cannot be stored or its products not made; the others go on.
            RunError: nothing can be written.
        """
        task, tile = _image_and_tile(part)
        with self._lock:
            if task.name in self._failed:
                return False
            image = self._opened(task)
        try:
            if fields:
                self._add(task, tile, image, fields)
            with self._lock:
                image.source = image.source or tile.source
                image.left -= 1
                if image.left:
                    return False
            self._finish(task, image)
            return True
        except StorageError:
            self.fail(part)
            raise
        except BaseException:
            image.files.close()
            raise

    def draw(self, part: Part) -> None:
        """Nothing is made of a finished image."""

    def fail(self, part: Part) -> None:
        """Drops what there is of an image."""
        with self._lock:
            self._failed.add(part.task.name)
            image = self._images.pop(part.task.name, None)
        if image is not None:
            image.files.close()
        discard_products(self.folder, part.task.name)

    def _opened(self, task: ImageTask) -> _Open:
        if task.name not in self._images:
            files = ExitStack()
            path = files.enter_context(scratch_path(self.folder / f"{task.name}.maps"))
            mosaic = Mosaic(path, 3 if self.spread else 2, task.shape)
            self._images[task.name] = _Open(mosaic, files, task.parts)
        return self._images[task.name]

    def _add(self, task: ImageTask, tile: Tile, image: _Open, fields: Sequence[Tensor]) -> None:
        maps, flow = (part.numpy() for part in fields)
        if not np.isfinite(maps).all():
            raise StorageError(f"{task.path}: the model gives heights that are no numbers")
        if task.tiling is None:
            raise ValueError("a tile without tiling")
        window = task.tiling.window(tile.number)
        size = tile.valid.shape
        parts = [m if m.shape == size else np.asarray(resized_back(m, size)) for m in maps]
        parts[MAGNITUDE] = parts[MAGNITUDE] / np.float32(task.zoom)
        image.mosaic.add(window, task.tiling.weights(tile.number), parts)
        known = np.where(tile.valid, parts[AGL], 0.0).clip(0.0)
        scale, x, y = flow.tolist()
        signal = float(np.square(known, dtype=np.float64).sum())
        with self._lock:
            image.tiles.append(TileFlow(tile.number, scale / task.zoom, (x, y), signal))

    def _finish(self, task: ImageTask, image: _Open) -> None:
        """All products of an image, and its record."""
        if task.tiling is None or task.colours is None or image.source is None:
            raise ValueError("an image that could not be read has no products")
        try:
            flows, warnings = choose(
                image.tiles, task.sensor, self.from_angles, self.flow, task.tiling, self.local_flow
            )
            for line in warnings:
                logger.warning("%s: %s", task.path, line)
            rgb, valid = task.windows()
            heights = MosaicMap(image.mosaic, AGL, valid)
            made = PredictedImage(
                source=task.path,
                stem=task.name,
                shape=task.shape,
                georeference=task.georeference,
                gsd_m=task.gsd_m,
                rgb=rgb,
                valid=valid,
                agl_m=heights,
                magnitude_px=MosaicMap(image.mosaic, MAGNITUDE, valid),
                uncertainty_m=MosaicMap(image.mosaic, SPREAD, valid) if self.spread else None,
                flows=flows,
                facts={**self.facts, "colours": task.colours.words},
                warnings=(*task.warnings, *warnings),
            )
            files = self.write_products(made)
            stamps = {str(f.relative_to(self.folder)): FileStamp.of_file(f) for f in files}
            record = Record(self.settings, image.source, task.gsd_m, stamps)
            self.journal.add(task.name, record)
        except (RunError, OSError):
            raise
        except GeoposeError as error:
            raise StorageError(f"{task.path}: {error}") from error
        finally:
            with self._lock:
                self._images.pop(task.name, None)
            image.files.close()


def resized_back(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map at an image's own size; never beyond the values that it has."""
    back = resized(values, size)
    return back.clip(values.min(), values.max())


def _image_and_tile(part: Part) -> tuple[ImageTask, Tile]:
    if not isinstance(part.task, ImageTask) or not isinstance(part.more, Tile):
        raise ValueError("not a tile of an image")
    return part.task, part.more
