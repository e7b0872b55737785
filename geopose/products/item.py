"""`<stem>.json`: a STAC item (1.1.0) of an image's products, with view and projection extensions.

In: a predicted image and its files. Out: an item that a catalogue or a STAC browser takes as it is.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geopose.files.atomic import atomic_path
from geopose.geometry import wrap_angle
from geopose.imagery.files.acquired import acquisition_time
from geopose.imagery.files.raster import open_raster
from geopose.imagery.place.gdal import find_rasterio
from geopose.imagery.place.georeference import Georeference, parse_crs
from geopose.products.maps import HeightStatistics
from geopose.products.predicted import PredictedImage
from geopose.products.selection import COG, KINDS, MAP
from geopose.products.where import footprint, sensor_angles

VERSION = "1.1.0"
_VIEW = "https://stac-extensions.github.io/view/v1.0.0/schema.json"
_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_FIRST_SATELLITE = datetime(1957, 10, 4, tzinfo=UTC)
_DIGITS = 7  # of degrees: a centimetre


def write_item(
    path: Path,
    image: PredictedImage,
    files: Mapping[str, Path],
    statistics: HeightStatistics,
    shares: tuple[float, float, float] | None,
    ground_m: float,
) -> None:
    """Writes the item of an image.

    Args:
        path: the .json file, in the folder of the files.
        image: what was predicted.
        files: products by kind (keys of KINDS, and with "_map" behind it a product's map).
        statistics: of the heights.
        shares: seen, hidden, unknown; None = it was not rectified.
        ground_m: ellipsoidal metres of the ground, for the footprint.

    Raises:
        RunError: the file cannot be written.
    """
    covered, angles = footprint(image, ground_m), sensor_angles(image, ground_m)
    properties = _times(image.source) | {"gsd": image.gsd_m} | _flow(image)
    properties["title"] = f"Heights above ground and vertical flow of {image.source.name}"
    properties |= _height_properties(statistics, shares)
    if angles is not None:
        azimuth, incidence = angles
        # STAC looks from the point below the sensor towards the scene, so the other way round.
        properties["view:azimuth"] = round((azimuth + 180.0) % 360.0, 3)
        properties["view:incidence_angle"] = round(incidence, 3)
        properties["geopose:sensor_azimuth"] = round(azimuth, 3)
    properties |= _projection(image.georeference, image.shape)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [_PROJECTION, *([_VIEW] if angles is not None else [])],
        "id": image.stem,
        "geometry": None if covered is None else _rounded(covered.geometry),
    }
    if covered is not None:
        item["bbox"] = _rounded(covered.bbox)
    item |= {"properties": properties, "links": [], "assets": _assets(path.parent, files)}
    text = json.dumps(item, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _times(source: Path) -> dict[str, Any]:
    """When it was taken. If the file does not tell: an interval, as the standard demands then.

    A satellite's image is not older than the first satellite, and not newer than its file.
    """
    taken = acquisition_time(source)
    if taken is not None:
        return {"datetime": _text(taken)}
    try:
        latest = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        latest = datetime.now(UTC)
    return {
        "datetime": None,
        "start_datetime": _text(_FIRST_SATELLITE),
        "end_datetime": _text(max(latest, _FIRST_SATELLITE)),
    }


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _flow(image: PredictedImage) -> dict[str, Any]:
    used = image.flows.used
    return {
        "geopose:source": image.source.name,
        "geopose:flow_source": image.flows.source,
        "geopose:scale_px_per_m": used.scale_px_per_m,
        "geopose:angle_rad": wrap_angle(used.angle_rad),
        "geopose:provenance": dict(image.facts),
        "geopose:warnings": list(image.warnings),
    }


def _height_properties(
    statistics: HeightStatistics, shares: tuple[float, float, float] | None
) -> dict[str, Any]:
    heights = {
        "known_share": statistics.known_share,
        "lowest_m": statistics.lowest_m,
        "highest_m": statistics.highest_m,
        "mean_m": statistics.mean_m,
        "median_m": statistics.median_m,
    }
    finite = {k: v for k, v in heights.items() if v is not None and math.isfinite(v)}
    found: dict[str, Any] = {"geopose:heights": finite}
    if shares is not None:
        found["geopose:occlusion"] = dict(zip(("seen", "hidden", "unknown"), shares, strict=True))
    return found


def _projection(place: Georeference, shape: tuple[int, int]) -> dict[str, Any]:
    """Fields of the projection extension; an image placed by RPCs has no CRS, and says so."""
    code, wkt2 = None, None
    if place.kind in ("transform", "gcps") and find_rasterio() is not None:
        crs = parse_crs(place.crs or "")
        authority = crs.to_authority()
        code = None if authority is None else ":".join(authority)
        wkt2 = crs.to_wkt(version="WKT2_2019")
    found: dict[str, Any] = {"proj:code": code, "proj:shape": list(shape)}
    if wkt2 is not None:
        found["proj:wkt2"] = wkt2
    if place.kind == "transform" and place.transform is not None:
        found["proj:transform"] = list(place.transform)
    return found


def _assets(folder: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """The files by their place beside the item; a map's kind is its product's and "_map"."""
    assets: dict[str, Any] = {}
    for kind, path in files.items():
        if kind in ("stac", "page"):  # itself; and what only the page is made of
            continue
        about, on_map = KINDS[kind.removesuffix(MAP)], kind.endswith(MAP)
        assets[kind] = {
            "href": f"./{path.relative_to(folder).as_posix()}",
            "title": about.title + (", on the map" if on_map else ""),
            "type": about.media_type,
            "roles": list(about.roles),
            **about.band,
        }
        if about.media_type == COG:
            assets[kind] |= _as_stored(path, with_place=on_map)
    return assets


def _as_stored(path: Path, with_place: bool) -> dict[str, Any]:
    """What the file itself says: its type of pixels, and of a map its place."""
    with open_raster(path) as raster:
        found: dict[str, Any] = {"data_type": raster.dtype.name}
        if raster.dtype.name == "uint16":
            found |= {"nodata": raster.nodata, "unit": "cm"}
        if with_place:
            found |= _projection(raster.georeference, raster.shape)
    if find_rasterio() is None:  # without it files are plain
        found["type"] = "image/tiff"
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
