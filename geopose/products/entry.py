"""What the page says of one image, as a small file of its own: `page/<stem>.json`.

In: a finished image. Out: facts and three pictures, some hundred kilobytes. A run's page is made of
these files, so a run that was resumed shows the images of the earlier one, too.
"""

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geopose.errors import InputError, one_line
from geopose.files.atomic import atomic_path
from geopose.geometry import wrap_angle
from geopose.output.preview import HEIGHT_COLOURS
from geopose.products.maps import HeightStatistics
from geopose.products.predicted import Flow, PredictedImage
from geopose.products.preview import Thumbnails
from geopose.products.vflow import disagreement

ENTRY_VERSION = 1
PICTURE_PX = 900  # longer side
_QUALITY = 80
_PICTURES = ("image", "rectified", "heights")


@dataclass(frozen=True)
class About:
    """A finished image, its products and what is to be said of it."""

    image: PredictedImage
    statistics: HeightStatistics
    shares: tuple[float, float, float] | None
    files: Mapping[str, Path]


def write_entry(path: Path, about: About, pictures: Thumbnails, top_m: float) -> None:
    """Writes an image's entry, `page/<stem>.json`.

    Args:
        path: the file; its folder is made if missing.
        about: facts.
        pictures: of the image.
        top_m: upper end of the colours of heights.

    Raises:
        RunError: it cannot be written.
    """
    image, folder = about.image, path.parent.parent
    differ = disagreement(image.flows)
    entry: dict[str, Any] = {
        "version": ENTRY_VERSION,
        "stem": image.stem,
        "source": image.source.name,
        "size": [image.shape[1], image.shape[0]],
        "gsd_m": image.gsd_m,
        "provenance": dict(image.facts),
        "heights": asdict(about.statistics),
        "shares": about.shares,
        "flow": {
            "source": image.flows.source,
            "used": _flow(image.flows.used),
            "model": _flow(image.flows.model),
            "sensor": _flow(image.flows.sensor),
            "disagreement": differ,
        },
        "warnings": list(image.warnings),
        "files": [p.relative_to(folder).as_posix() for k, p in about.files.items() if k != "page"],
        "top_m": top_m,
        "pictures": {
            "image": encode(pictures.image),
            "rectified": encode(pictures.rectified),
            "heights": encode(colour_heights(pictures.agl_m, top_m)),
        },
    }
    with atomic_path(_in_folder(path)) as partial:
        partial.write_text(json.dumps(_plain(entry), allow_nan=False), encoding="utf-8")


def _in_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read_entry(path: Path) -> dict[str, Any]:
    """An entry as it was written.

    Raises:
        InputError: it is missing, broken or of another version.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["version"] != ENTRY_VERSION or not set(_PICTURES) <= set(entry["pictures"]):
            raise ValueError(f"version {entry['version']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: not an entry of the page ({one_line(error, 100)}); predict this image again"
        ) from error
    return entry


def encode(rgba: NDArray[np.uint8], longest: int = PICTURE_PX) -> str:
    """A picture as base64 of a WebP file; what is transparent stays so."""
    return _encoded(Image.fromarray(rgba), longest)


def shrink(picture: str, longest: int) -> str:
    """An encoded picture made smaller, if it is larger than this."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    return picture if max(image.size) <= longest else _encoded(image, longest)


def _encoded(image: Image.Image, longest: int) -> str:
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(file.getvalue()).decode("ascii")


def colour_heights(agl_m: NDArray[np.float32], top_m: float) -> NDArray[np.uint8]:
    """Heights in colours, H x W x 4; transparent where there is no data."""
    colours = matplotlib.colormaps[HEIGHT_COLOURS](np.nan_to_num(agl_m / top_m, nan=0.0))
    rgba = np.rint(255 * colours).astype(np.uint8)
    rgba[..., 3] = np.where(np.isnan(agl_m), 0, 255)
    return rgba


def colour_stops(count: int = 9) -> list[str]:
    """The colours of heights from 0 to the top, for a legend."""
    colours = matplotlib.colormaps[HEIGHT_COLOURS](np.linspace(0, 1, count))
    return [matplotlib.colors.to_hex(colour) for colour in colours]


def _flow(flow: Flow | None) -> list[float] | None:
    return None if flow is None else [flow.scale_px_per_m, wrap_angle(flow.angle_rad)]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
