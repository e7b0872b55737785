"""`<stem>_VFLOW.json`: the challenge's two numbers, and all else that is known of the flow.

In: an image's flows. Out: a file that `read_vflow` reads: pixels per centimetre and radians.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import CM_PER_M
from geopose.data.vflow import write_vflow
from geopose.geometry import angle_difference, wrap_angle
from geopose.imagery.place.flow import TALL_M, FlowField
from geopose.products.predicted import Flow, Flows


def write_flows(path: Path, flows: Flows) -> None:
    """Writes the flow that was used as "scale" and "angle", and beside it where it comes from.

    All scales are in pixels per centimetre and all angles in radians; spreads are standard
    deviations over the tiles. "model" and "sensor" are null where they are not known; "field" is
    there where flow varies by place: its vectors (x to the right, y down) at "columns" and "rows",
    null where they are not known.

    Raises:
        StorageError: a flow that cannot be stored.
        RunError: the file cannot be written.
    """
    more: dict[str, Any] = {
        "units": {"scale": "pixels per centimetre of height", "angle": "radians"},
        "source": flows.source,
        "model": None,
        "sensor": None,
    }
    if flows.model is not None:
        more["model"] = _numbers(flows.model) | {
            "scale_spread": flows.model_scale_spread / CM_PER_M,
            "angle_spread": flows.model_angle_spread_rad,
        }
    if flows.sensor is not None:
        more["sensor"] = _numbers(flows.sensor) | {
            f"miss_px_of_{TALL_M:.0f}_m": flows.sensor_spread_px
        }
    if flows.field is not None:
        more["field"] = _field(flows.field)
    write_vflow(path, flows.used.scale_px_per_m, flows.used.angle_rad, more)


def disagreement(flows: Flows) -> tuple[float, float] | None:
    """How far model and sensor differ: (px/m, radians in [0, pi]); None where one is unknown."""
    if flows.model is None or flows.sensor is None:
        return None
    scale = abs(flows.model.scale_px_per_m - flows.sensor.scale_px_per_m)
    return scale, float(angle_difference(flows.model.angle_rad, flows.sensor.angle_rad))


def _numbers(flow: Flow) -> dict[str, float | None]:
    return {"scale": flow.scale_px_per_m / CM_PER_M, "angle": wrap_angle(flow.angle_rad)}


def _field(field: FlowField) -> dict[str, Any]:
    px_per_cm = field.px_per_m / CM_PER_M
    return {
        "columns": field.columns.tolist(),
        "rows": field.rows.tolist(),
        "x": _known(px_per_cm[..., 0]),
        "y": _known(px_per_cm[..., 1]),
    }


def _known(values: NDArray[np.float64]) -> list[Any]:
    """JSON has no NaN."""
    return np.where(np.isfinite(values), values, None).tolist()  # type: ignore[call-overload]
