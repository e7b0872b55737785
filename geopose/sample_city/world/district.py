"""A real height field as the geometry of scenes: what stands where, from a surface model alone.

In: a DSM GeoTIFF. Out: a `District`: heights above ground, what each cell is, roofs and buildings
numbered. Colours are invented later; nothing but heights is taken from the real place.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.sample_city.world.cities import CITIES

_WIDEST_M = 90.0  # buildings up to this width do not count as hills
_TALL_M, _CAR_M = 2.5, 0.7
_ROUGH_M = 0.12  # mean deviation from the median of neighbours: crowns are above, roofs below
_STEP_M = 1.0  # neighbours further apart belong to two roofs
_LEAST_ROOF_M2 = 25.0
_LARGEST_CAR_M2 = 22.0
_MOST_CELLS = 1 << 26
_FINE_M = 0.35
_PIXEL_SCALE = 33550  # GeoTIFF's tag of the cells' sides

Map = NDArray[np.float32]


class Cover(IntEnum):
    """What a cell of a district is."""

    GROUND = 0
    TREE = 1
    ROOF = 2
    CAR = 3


@dataclass(frozen=True)
class District:
    """A height field and what was found in it.

    Attributes:
        name: letters and digits of the file's name; the city of its scenes.
        cell_m: side of a cell in metres.
        agl_m: H x W float32, metres above ground, 0 or more.
        cover: H x W uint8 `Cover`.
        roofs: H x W int32, number of the roof surface; 0 elsewhere.
        buildings: H x W int32, number of the building; 0 elsewhere.
        unknown: H x W bool, where the file has no height (taken as ground, and no data in scenes).
    """

    name: str
    cell_m: float
    agl_m: Map
    cover: NDArray[np.uint8]
    roofs: NDArray[np.int32]
    buildings: NDArray[np.int32]
    unknown: NDArray[np.bool_]


def read_district(path: Path | str, cell_m: float | None = None) -> District:
    """Reads a surface model and takes it apart.

    Args:
        path: single-band TIFF of heights in metres; NaN or the file's no-data value = unknown.
        cell_m: side of a cell in metres; None = as the GeoTIFF says.

    Raises:
        InputError: no readable single-band TIFF, cells of unknown size, or no known height.
    """
    path = Path(path)
    surface, found_m, nodata = _read(path)
    cell = cell_m if cell_m is not None else found_m
    if cell is None or not 0.05 <= cell <= 5.0:
        raise InputError(
            f"{path}: its cells are {'of no known size' if cell is None else f'{cell:g} wide'}; "
            "give their side in metres (0.05 to 5) with --dsm-cell"
        )
    unknown = ~np.isfinite(surface)
    if nodata is not None:
        unknown |= surface == np.float32(nodata)
    if unknown.all():
        raise InputError(f"{path}: holds no height; give a DSM with heights in metres")
    surface = np.where(unknown, np.median(surface[~unknown]), surface).astype(np.float32)
    agl = np.maximum(cv2.medianBlur(surface, 5) - _ground(surface, cell), 0.0)
    agl[unknown] = 0.0
    rough = cv2.blur(np.abs(surface - cv2.medianBlur(surface, 5)), (5, 5))
    if cell > _FINE_M:  # halved, so that corners of cells can be rounded off
        agl = cv2.medianBlur(np.kron(agl, np.ones((2, 2), np.float32)), 5)
        rough = np.kron(rough, np.ones((2, 2), np.float32))
        unknown, cell = np.kron(unknown, np.ones((2, 2), bool)), cell / 2
    return _take_apart(district_name(path), cell, agl, rough, unknown)


def district_name(path: Path | str) -> str:
    """City of the scenes of a surface model: letters and digits of its file name.

    Raises:
        InputError: the name has none, or is that of a synthetic city.
    """
    name = re.sub("[^A-Za-z0-9]", "", Path(path).stem)
    if not name or name in CITIES:
        raise InputError(f"{path}: '{name}' is no name for a city of its own; rename the file")
    return name


def _read(path: Path) -> tuple[Map, float | None, float | None]:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert isinstance(page, tifffile.TiffPage)
            scale = page.tags.valueof(_PIXEL_SCALE)
            if page.imagewidth * page.imagelength > _MOST_CELLS:
                raise InputError(f"{path}: more than {_MOST_CELLS} cells; cut a part out")
            surface, nodata = page.asarray(), page.nodata if "GDAL_NODATA" in page.tags else None
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InputError(f"{path}: no TIFF that can be read ({error}); give a DSM") from error
    if surface.ndim != 2 or min(surface.shape) < 16:
        raise InputError(f"{path}: is {surface.shape}; give one band of at least 16 x 16 heights")
    return surface.astype(np.float32), float(scale[0]) if scale else None, nodata


def _ground(surface: Map, cell_m: float) -> Map:
    """The bare ground: an opening wider than buildings, smoothed."""
    step = max(1, round(3.0 / cell_m))
    low = cv2.erode(surface, np.ones((step, step), np.uint8))
    coarse = cv2.resize(low, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_NEAREST)
    side = max(3, round(_WIDEST_M / (cell_m * step))) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    opened = cv2.morphologyEx(coarse, cv2.MORPH_OPEN, disc, borderType=cv2.BORDER_REFLECT)
    smooth = cv2.GaussianBlur(opened, (0, 0), side / 4)
    return np.asarray(cv2.resize(smooth, surface.shape[::-1], interpolation=cv2.INTER_LINEAR))


def _take_apart(
    name: str, cell_m: float, agl: Map, rough: Map, unknown: NDArray[np.bool_]
) -> District:
    side = max(5, round(2.5 / cell_m) | 1)
    flat = (agl > _TALL_M) & (rough < 2 * _ROUGH_M)
    plain = cv2.morphologyEx(flat.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    gradient = cv2.morphologyEx(agl, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    _, labels, facts, _ = cv2.connectedComponentsWithStats(
        ((plain > 0) & (gradient < _STEP_M)).astype(np.uint8), connectivity=4
    )
    large = facts[:, cv2.CC_STAT_AREA] * cell_m**2 >= _LEAST_ROOF_M2
    large[0] = False
    labels = np.asarray(labels, np.int32)
    sizes = np.maximum(facts[:, cv2.CC_STAT_AREA], 1)
    large &= np.bincount(labels.reshape(-1), rough.reshape(-1)) / sizes < _ROUGH_M
    cores = np.where(large[labels], labels, 0).astype(np.int32)
    # A roof takes its ragged edge: cells as tall as its nearest core, up to two metres away.
    distance, nearest = cv2.distanceTransformWithLabels(
        (cores == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owners = np.zeros(int(nearest.max()) + 1, np.int32)
    owners[nearest[cores > 0]] = cores[cores > 0]
    tops = np.zeros(len(facts), np.float32)
    np.maximum.at(tops, cores.reshape(-1), agl.reshape(-1))
    owner = owners[nearest]
    roof = (cores > 0) | ((distance * cell_m < 2.0) & (agl > _TALL_M) & (agl < tops[owner] + 6.0))
    crown = ((agl > _TALL_M) & ~roof).astype(np.uint8)
    core = cv2.morphologyEx(crown, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    thin = (crown > 0) & (core == 0)
    roof |= thin & (distance * cell_m < 4.0)
    roofs = np.where(roof, owner, 0).astype(np.int32)
    _, buildings = cv2.connectedComponents(roof.astype(np.uint8), connectivity=8)
    cover = np.full(agl.shape, Cover.GROUND, np.uint8)
    cover[roof] = Cover.ROOF
    cover[(agl > _TALL_M) & ~roof] = Cover.TREE
    low = ((agl > _CAR_M) & (agl <= _TALL_M)).astype(np.uint8)
    _, lumps, facts, _ = cv2.connectedComponentsWithStats(low, connectivity=4)
    small = facts[:, cv2.CC_STAT_AREA] * cell_m**2 <= _LARGEST_CAR_M2
    small[0] = False
    cover[small[lumps] & ~roof] = Cover.CAR
    return District(name, cell_m, agl, cover, roofs, buildings.astype(np.int32), unknown)
