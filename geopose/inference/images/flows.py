"""One flow for an image: the model's over all tiles, the sensor's, and which of them is used.

In: each tile's scale, direction and height signal; what RPCs or the sensor's angles say.
Out: `Flows`, and warnings where both disagree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.geometry import angle_difference, angle_to_vector, vector_to_angle
from geopose.imagery.place.flow import FlowField, SensorFlow
from geopose.inference.images.tiling import Tiling
from geopose.products.predicted import Flow, Flows
from geopose.words import FROM_MODEL, FROM_RPC, FROM_SENSOR

# Of the longer vector's length. The authors of the challenge's baseline give mean errors of 8 to 15
# degrees, 0.14 to 0.26 of a length; beyond this even a good model is wrong.
USUAL_MISS = 0.4


@dataclass(frozen=True)
class TileFlow:
    """What the model says of one tile.

    Attributes:
        number: of the tile.
        scale_px_per_m: in pixels of the image.
        direction: (x, y) of length 1; NaN where views and models cancel.
        signal: sum of squared heights, m^2 px: a tile of flat ground does not show its lean.
    """

    number: int
    scale_px_per_m: float
    direction: tuple[float, float]
    signal: float


def combine(tiles: Sequence[TileFlow]) -> tuple[Flow | None, float, float]:
    """(flow, spread of its scale in px/m, of its angle in radians), weighted by height signal.

    The spread of angles is the circular standard deviation, sqrt(-2 ln R), of the weighted mean
    vector's length R (Mardia and Jupp, Directional Statistics, 2000). No direction: None.
    """
    known = [t for t in tiles if math.isfinite(sum(t.direction) + t.scale_px_per_m)]
    if not known:
        return None, 0.0, 0.0
    signal = np.array([t.signal for t in known])
    weight = signal / signal.sum() if signal.sum() > 0 else np.full(len(known), 1 / len(known))
    scales = np.array([t.scale_px_per_m for t in known])
    scale = float(weight @ scales)
    mean = weight @ np.array([t.direction for t in known])
    length = min(float(np.hypot(*mean)), 1.0)
    if length < 1e-6:
        return None, 0.0, 0.0
    spread = math.sqrt(max(0.0, float(weight @ (scales - scale) ** 2)))
    angular = math.sqrt(-2.0 * math.log(length))
    return Flow(scale, float(vector_to_angle(mean))), spread, angular


def choose(
    tiles: Sequence[TileFlow],
    sensor: SensorFlow | None,
    from_angles: bool,
    wanted: str,
    tiling: Tiling,
    local: bool,
) -> tuple[Flows, list[str]]:
    """An image's flows, and what the user should know.

    Args:
        tiles: of the image, those with data.
        sensor: None = unknown.
        from_angles: whether it is by the sensor's angles, not by RPCs.
        wanted: one of `FLOW_CHOICES`.
        tiling: of the image.
        local: also the flow of each tile.

    Raises:
        InputError: no flow of the wanted kind.
    """
    model, scale_spread, angle_spread = combine(tiles)
    by_sensor = None if sensor is None else Flow(sensor.scale_px_per_m, sensor.angle_rad)
    kind = FROM_SENSOR if from_angles else FROM_RPC
    if wanted == FROM_RPC and by_sensor is None:
        raise InputError("--flow rpc, but the image has no RPCs and no --sensor is given")
    source = kind if by_sensor is not None and wanted != FROM_MODEL else FROM_MODEL
    used = model if source == FROM_MODEL else by_sensor
    if used is None:
        raise InputError("the model's views cancel and give no direction of flow; use --flow rpc")
    warnings = [] if model is None or by_sensor is None else _disagreement(model, by_sensor, source)
    field = None if sensor is None or source == FROM_MODEL else sensor.field
    if local and source == FROM_MODEL:
        field = _local(tiles, tiling, used)
    flows = Flows(
        used, source, model, scale_spread, angle_spread, by_sensor,
        None if sensor is None else sensor.spread_px, field,
    )  # fmt: skip
    return flows, warnings


def vector(flow: Flow) -> NDArray[np.floating]:
    """(x, y) in pixels per metre of height."""
    return flow.scale_px_per_m * angle_to_vector(flow.angle_rad)


def _disagreement(model: Flow, sensor: Flow, source: str) -> list[str]:
    miss = float(np.hypot(*(vector(model) - vector(sensor))))
    if miss <= USUAL_MISS * max(sensor.scale_px_per_m, model.scale_px_per_m):
        return []
    degrees = math.degrees(float(angle_difference(model.angle_rad, sensor.angle_rad)))
    other = "the model's is used" if source == FROM_MODEL else "the sensor's is used"
    return [
        f"the model's flow ({model.scale_px_per_m:.2f} px/m at {_degrees(model)}) and the sensor's "
        f"({sensor.scale_px_per_m:.2f} px/m at {_degrees(sensor)}) differ by {degrees:.0f} "
        f"degrees, more than usual; {other}"
    ]


def _degrees(flow: Flow) -> str:
    return f"{math.degrees(flow.angle_rad):.0f} degrees"


def _local(tiles: Sequence[TileFlow], tiling: Tiling, used: Flow) -> FlowField | None:
    """Vectors at the tiles' centres; tiles that show none have the image's."""
    rows = np.array([(s.start + s.stop - 1) / 2 for s in tiling.rows.spans])
    columns = np.array([(s.start + s.stop - 1) / 2 for s in tiling.columns.spans])
    if len(rows) < 2 or len(columns) < 2:
        return None
    found = np.tile(vector(used), (len(rows), len(columns), 1)).astype(np.float64)
    for tile in tiles:
        if math.isfinite(sum(tile.direction) + tile.scale_px_per_m) and tile.signal > 0:
            row, column = divmod(tile.number, len(columns))
            found[row, column] = tile.scale_px_per_m * np.array(tile.direction)
    return FlowField(columns, rows, found)
