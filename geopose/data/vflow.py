"""Reads and writes the flow of an image: `{"scale": px per cm, "angle": radians}` on disk.

In: paths. Out: pixels per metre and radians, and the reverse.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geopose.data.decoding import read_bytes
from geopose.data.heights import CM_PER_M
from geopose.errors import InputError, StorageError, one_line
from geopose.files.atomic import atomic_path
from geopose.geometry import wrap_angle
from geopose.schema.numbers import is_number

_ROUNDING_RAD = 1e-3


def read_vflow(path: Path | str) -> tuple[float, float]:
    """Reads a flow file, `{"scale": px per cm, "angle": radians}`.

    Returns:
        (scale in pixels per metre, >= 0; angle in radians in [0, 2 pi)).

    Raises:
        InputError: missing file, not such JSON, not finite numbers, or an angle of more
            than one turn.
    """
    path = Path(path)
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({one_line(error, 120)})") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: expected {{"scale": px per cm, "angle": radians}}')
    scale_px_per_cm = _number(path, content, "scale")
    angle_rad = _number(path, content, "angle")
    scale_px_per_m = scale_px_per_cm * CM_PER_M
    if scale_px_per_cm < 0 or math.isinf(scale_px_per_m):
        raise InputError(f"{path}: scale is {scale_px_per_cm}, expected px per cm, 0 or more")
    if abs(angle_rad) > 2 * math.pi + _ROUNDING_RAD:
        raise InputError(
            f"{path}: angle is {angle_rad:g}, expected radians, 0 to 2 pi; if these are degrees, "
            f"write {math.radians(angle_rad % 360):.4f}"
        )
    return scale_px_per_m, wrap_angle(angle_rad)


def write_vflow(
    path: Path | str,
    scale_px_per_m: float,
    angle_rad: float,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes scale (given in pixels per metre) and angle (radians) as px per cm and radians.

    Args:
        path: the .json file.
        scale_px_per_m: 0 or more.
        angle_rad: stored in [0, 2 pi).
        more: further entries beside "scale" and "angle", which readers of these two pass over.

    Raises:
        StorageError: not finite, or a negative scale.
    """
    scale_px_per_m, angle_rad = float(scale_px_per_m), float(angle_rad)
    if math.isnan(angle_rad):
        raise StorageError(f"{path}: no direction of the flow was predicted (views may cancel out)")
    if not (math.isfinite(scale_px_per_m) and math.isfinite(angle_rad)) or scale_px_per_m < 0:
        raise StorageError(
            f"{path}: scale {scale_px_per_m} px/m, angle {angle_rad} cannot be written"
        )
    content = {"scale": scale_px_per_m / CM_PER_M, "angle": wrap_angle(angle_rad), **(more or {})}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content))


def _number(path: Path, content: dict, key: str) -> float:
    value = content.get(key)
    if not is_number(value):
        raise InputError(f"{path}: {key!r} is {one_line(value, 120)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{path}: {key!r} is {number}, expected a finite number")
    return number
