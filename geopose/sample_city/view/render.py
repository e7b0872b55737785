"""Renders one synthetic oblique scene with exact height, scale and angle.

In: city, index, size, seed. Out: a `Scene`. Order of work: camera and sun (cities), world (plan),
what is seen (raster), light (shade), then the sensor: haze, optics, noise, eight bits.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.sample_city.view.ground import paint_ground
from geopose.sample_city.view.lidar import Worlds, drawn_survey, survey_mesh, two_dates
from geopose.sample_city.view.raster import View, rasterize
from geopose.sample_city.view.sensor import expose
from geopose.sample_city.view.shade import shade
from geopose.sample_city.world.cities import EASY, SceneParameters, scene_parameters
from geopose.sample_city.world.plan import build_world

MIN_SIZE_PX, MAX_SIZE_PX = 32, 8192


@dataclass(frozen=True)
class Scene:
    """One synthetic photograph and its truth.

    Attributes:
        image_id: CITY_xxxxxx, the last part being the scene index.
        city: synthetic city, the id up to its first underscore.
        rgb: H x W x 3 uint8.
        agl_m: H x W float32, exact height above ground in metres of the surface seen in each
            pixel; dense, also where `nodata` is set.
        nodata: H x W bool, where a data set withholds the height.
        scale_px_per_m: pixels of flow per metre of height, tan(off-nadir) / gsd.
        angle_rad: flow direction in [0, 2 pi), (x, y) = (sin a, cos a).
        gsd_m: metres per pixel.
        parameters: camera and sun as drawn.
        measured_m: H x W float32, heights as a lidar would have them, NaN = unknown; None if the
            scene was rendered without. `agl_m` is exact all the same.
        survey: what is wrong with `measured_m`; None without.
    """

    image_id: str
    city: str
    rgb: NDArray[np.uint8]
    agl_m: NDArray[np.float32]
    nodata: NDArray[np.bool_]
    scale_px_per_m: float
    angle_rad: float
    gsd_m: float
    parameters: SceneParameters
    measured_m: NDArray[np.float32] | None = None
    survey: dict[str, object] | None = None


def scene_id(city: str, index: int) -> str:
    """CITY_xxxxxx."""
    return f"{city}_{index:06d}"


def shape_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one number or a pair.

    Raises:
        InputError: a side outside MIN_SIZE_PX..MAX_SIZE_PX.
    """
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if not MIN_SIZE_PX <= side <= MAX_SIZE_PX:
            raise InputError(f"scene size {side} px: use {MIN_SIZE_PX} to {MAX_SIZE_PX}")
    return height, width


def render_scene(
    city: str,
    index: int,
    size: int | tuple[int, int],
    seed: int,
    preset: str = EASY,
    lidar: bool = False,
) -> Scene:
    """Renders scene `index` of a synthetic city; the same arguments give the same arrays.

    Args:
        city: one of `cities.CITIES`.
        index: scene number within the city, 0 or more; each draws its own camera, sun and streets.
        size: pixels, one number or (height, width).
        seed: 0 or more; another seed gives another set of scenes.
        preset: one of `cities.PRESETS`.
        lidar: also measure heights as in `lidar`; the image is the same, but for a building that
            may be missing from it.

    Raises:
        InputError: unknown city or preset, negative index or seed, size out of range.
    """
    shape = shape_of(size)
    scene = scene_parameters(city, index, seed, preset)
    extent_m = shape[1] * scene.gsd_m, shape[0] * scene.gsd_m
    world = build_world(scene, extent_m)
    mesh = world.mesh.build()
    survey = drawn_survey(city, index, seed) if lidar else None
    worlds = two_dates(survey, mesh, extent_m) if survey else Worlds(mesh, mesh, None)
    mesh = worlds.image
    view = View(scene.k, scene.gsd_m, (0, 0), shape)
    seen = rasterize(mesh, view)
    ground = paint_ground(world.shapes, scene.gsd_m, shape)
    radiance = shade(scene, mesh, view, seen, ground)
    measured, report = None, None
    if survey:
        measured, report = survey_mesh(survey, scene, worlds, view, ground[1] > 0, seen.z_m)
    return Scene(
        image_id=scene_id(city, index),
        city=city,
        rgb=expose(scene, radiance),
        agl_m=seen.z_m,
        nodata=_nodata(scene.rng, (ground[1] > 0) & (seen.z_m == 0)),
        scale_px_per_m=scene.scale_px_per_m,
        angle_rad=scene.angle_rad,
        gsd_m=scene.gsd_m,
        parameters=scene,
        measured_m=measured,
        survey=report,
    )


def _nodata(rng: np.random.Generator, water: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Irregular patches without height, 0.5 to 3 % of the image: part of the water, and blobs."""
    height, width = water.shape
    share = float(rng.uniform(0.006, 0.022))
    step = 40  # pixels, size of a patch
    coarse = rng.standard_normal((height // step + 4, width // step + 4), np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    wanted = max(math.ceil(share * field.size), 1)
    cut = np.partition(field.reshape(-1), field.size - wanted)[field.size - wanted]
    mask = field >= cut
    if water.any():
        lake = water & (field > 0.4)
        room = int(0.03 * field.size) - int(mask.sum())
        if int((lake & ~mask).sum()) <= room:
            mask |= lake
    return mask
