"""One image file as a task of tiles: its place, ground sampling, colours, and the tiles of it.

In: a file and what the user says of it. Out: a task whose tiles are read at the ground sampling
that the models know.
"""

import threading
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.errors import GeoposeError, InputError
from geopose.files.stamp import SourceStamp
from geopose.imagery.colours import Colours, StretchChoice
from geopose.imagery.files.raster import Raster, open_raster
from geopose.imagery.map import check_place
from geopose.imagery.place.flow import SensorFlow, gsd_at, map_flow, sensor_flow
from geopose.imagery.place.georeference import Georeference
from geopose.inference.images.tiling import Tiling, Window
from geopose.inference.pipeline.task import Part

_TOLERANCE = 1.1  # a gsd so little beyond a model's range is not worth resampling
_LEAST_PX = 32  # a side that networks can halve five times


@dataclass(frozen=True)
class ImageOptions:
    """What a user says of the images; the same for all of a run.

    Attributes:
        gsd_m: metres per pixel; None = by transform or RPCs.
        native_gsd: do not resample for the models.
        bands: from 1, one or three; None = by the file.
        stretch: to 8 bits.
        nodata: value that means no data beside what the file says; None = none.
        sensor: (azimuth, incidence) in degrees; None = unknown.
        ground: ellipsoidal metres of the ground, or a height model, for RPCs; None = the middle of
            the RPCs' own heights, which is good enough for the flow.
        on_map: maps of the products are wanted.
        tile_px: side of a tile as the models see it.
        overlap_px: of tiles, at least.
    """

    gsd_m: float | None = None
    native_gsd: bool = False
    bands: tuple[int, ...] | None = None
    stretch: StretchChoice = field(default_factory=StretchChoice)
    nodata: float | None = None
    sensor: tuple[float, float] | None = None
    ground: float | Path | None = None
    on_map: bool = False
    tile_px: int = 1024
    overlap_px: int = 256


@dataclass(frozen=True)
class Tile:
    """A tile read, as the outputs need it.

    Attributes:
        number: in the image's tiling.
        valid: H x W of the image's own pixels.
        source: stamp of the file, with the first tile only.
    """

    number: int
    valid: NDArray[np.bool_]
    source: SourceStamp | None


@dataclass(frozen=True)
class ImageTask:
    """One image to predict; see `Task`.

    Attributes:
        path: its file.
        name: what its products are called after.
        shape: (height, width) in its own pixels.
        gsd_m: metres of ground per pixel.
        georeference: its place.
        sensor: flow by RPCs or the sensor's angles; None = unknown.
        colours: its pixels as RGB.
        tiling: in its own pixels.
        zoom: pixels that the models see per pixel of it.
        problem: why it cannot be predicted; "" = it can.
        warnings: what the user should know of it.
    """

    path: Path
    name: str
    shape: tuple[int, int] = (0, 0)
    gsd_m: float = 0.0
    georeference: Georeference = field(default_factory=Georeference)
    sensor: SensorFlow | None = None
    colours: Colours | None = None
    tiling: Tiling | None = None
    zoom: float = 1.0
    problem: str = ""
    warnings: tuple[str, ...] = ()

    predict = True

    @property
    def parts(self) -> int:
        """Number of tiles."""
        return 1 if self.tiling is None else len(self.tiling)

    @property
    def size(self) -> tuple[int, int]:
        """Of a tile as the models see it."""
        if self.tiling is None:
            return 0, 0
        return self._seen(self.tiling.rows.tile), self._seen(self.tiling.columns.tile)

    def _seen(self, length: int) -> int:
        return max(_LEAST_PX, round(length * self.zoom)) if self.zoom != 1.0 else length

    def read(self, number: int) -> Part:
        """A tile at the models' ground sampling; no `rgb` where the image has no data."""
        if self.problem or self.tiling is None or self.colours is None:
            return Part(self, number, None, problem=self.problem)
        window = self.tiling.window(number)
        try:
            source = SourceStamp.of_file(self.path) if number == 0 else None
            rgb, valid = self.colours.read(_opened(self.path), window)
        except GeoposeError as error:
            return Part(self, number, None, problem=str(error))
        except OSError as error:
            return Part(self, number, None, problem=f"cannot read {self.path}: {error.strerror}")
        tile = Tile(number, valid, source)
        if not valid.any():
            return Part(self, number, None, more=tile)
        if rgb.shape[:2] != self.size:
            rgb = resized(rgb, self.size)
        return Part(self, number, rgb, self.gsd_m / self.zoom, more=tile)

    def windows(self) -> tuple["RgbWindows", "ValidWindows"]:
        """Its colours, and where it has data, a window at a time."""
        if self.colours is None:
            raise ValueError("an image that cannot be read has no colours")
        return (
            RgbWindows(self.path, self.shape, self.colours),
            ValidWindows(self.path, self.shape, self.colours),
        )


class RgbWindows:
    """Windows of an image's colours, H x W x 3 uint8."""

    def __init__(self, path: Path, shape: tuple[int, int], colours: Colours) -> None:
        self.shape = (*shape, 3)
        self._path, self._colours = path, colours

    def __getitem__(self, window: Window) -> NDArray[np.uint8]:
        return self._colours.read(_opened(self._path), window)[0]


class ValidWindows:
    """Windows of where an image has data, H x W bool."""

    def __init__(self, path: Path, shape: tuple[int, int], colours: Colours) -> None:
        self.shape = shape
        self._path, self._colours = path, colours

    def __getitem__(self, window: Window) -> NDArray[np.bool_]:
        return self._colours.valid(_opened(self._path), window)


def _opened(path: Path) -> Raster:
    """Tiles of one image follow each other, so it is left open."""
    return _open(path, path.stat().st_mtime_ns, threading.get_ident())


@lru_cache(maxsize=4)
def _open(path: Path, _: int, __: int) -> Raster:
    return open_raster(path)  # of each thread its own: GDAL's must not be shared


def resized(maps: NDArray, size: tuple[int, int]) -> NDArray:
    """H x W [x C] maps as (height, width): means of areas where they shrink, cubic where not."""
    shrinks = size[0] <= maps.shape[0] and size[1] <= maps.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(maps, (size[1], size[0]), interpolation=method))


def open_task(
    path: Path, name: str, options: ImageOptions, range_m: tuple[float, float] | None
) -> ImageTask:
    """The task of an image, as far as its header says; what is wrong is in `problem`.

    Args:
        path: its file.
        name: for its products.
        options: what the user says of it.
        range_m: ground sampling that the models know; None = any.
    """
    try:
        with open_raster(path) as raster:
            return _task(raster, name, options, range_m)
    except InputError as error:
        return ImageTask(path, name, problem=str(error))
    except OSError as error:
        return ImageTask(path, name, problem=f"cannot read {path}: {error.strerror}")


def with_colours(task: ImageTask, options: ImageOptions) -> ImageTask:
    """The same task with bands and stretch, for which pixels are read."""
    if task.problem:
        return task
    try:
        with open_raster(task.path) as raster:
            colours = Colours.of(raster, options.bands, options.stretch, options.nodata)
    except InputError as error:
        return replace(task, problem=str(error))
    return replace(task, colours=colours)


def _task(
    raster: Raster, name: str, options: ImageOptions, range_m: tuple[float, float] | None
) -> ImageTask:
    if options.on_map:
        check_place(raster.path, raster.georeference, options.ground)  # before hours of predicting
    sensor = _sensor(raster, options)
    gsd_m = _gsd(raster, options, sensor)
    zoom, warnings = 1.0, []
    if not options.native_gsd and range_m is not None:
        zoom = zoom_for(gsd_m, range_m)
        if zoom != 1.0:
            finest, coarsest = range_m
            known = f"{finest:.2g} to {coarsest:.2g} m" if finest < coarsest else f"{finest:.2g} m"
            warnings.append(
                f"{gsd_m:.3g} m per pixel is outside of the {known} that the models know: "
                f"predicted at {gsd_m / zoom:.3g} m and brought back (--native-gsd leaves it)"
            )
    tile, overlap = (max(1, round(px / zoom)) for px in (options.tile_px, options.overlap_px))
    return ImageTask(
        raster.path,
        name,
        raster.shape,
        gsd_m,
        raster.georeference,
        sensor,
        None,
        Tiling.of(raster.shape, tile, overlap),
        zoom,
        warnings=tuple(warnings),
    )


def zoom_for(gsd_m: float, range_m: tuple[float, float]) -> float:
    """How often larger the models should see an image: 1 within what they know.

    Args:
        gsd_m: of the image.
        range_m: (finest, coarsest) that they were trained on.
    """
    finest, coarsest = range_m
    if gsd_m < finest / _TOLERANCE:
        return gsd_m / finest
    if gsd_m > coarsest * _TOLERANCE:
        return gsd_m / coarsest
    return 1.0


def _sensor(raster: Raster, options: ImageOptions) -> SensorFlow | None:
    """Flow by RPCs, or by the sensor's angles where the user gives them."""
    if options.sensor is not None:
        try:
            return map_flow(raster.georeference, *raster.shape, *options.sensor)
        except InputError as error:
            raise InputError(f"{raster.path}: --sensor: {error}") from error
    if raster.georeference.rpc is None:
        return None
    try:
        return sensor_flow(
            raster.georeference,
            *raster.shape,
            None if isinstance(options.ground, Path) else options.ground,
        )
    except InputError as error:
        raise InputError(f"{raster.path}: {error}") from error


def _gsd(raster: Raster, options: ImageOptions, sensor: SensorFlow | None) -> float:
    if options.gsd_m is not None:
        return options.gsd_m
    if sensor is not None:
        return sensor.gsd_m
    if raster.georeference.kind == "none":
        raise InputError(
            f"{raster.path}: nothing says how many metres a pixel is (no transform, GCPs or RPCs); "
            "give --gsd METRES"
        )
    return gsd_at(raster.georeference, (raster.width - 1) / 2, (raster.height - 1) / 2)
