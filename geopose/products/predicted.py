"""One image whose heights and flow have been predicted, as the products see it.

Maps are read a window at a time: an image of any size has products in bounded memory.
"""

from dataclasses import dataclass, field
from pathlib import Path

from geopose.imagery.place.field import FlowField
from geopose.imagery.place.georeference import Georeference
from geopose.imagery.rectify import Windows


@dataclass(frozen=True)
class Flow:
    """One flow vector of an image.

    Attributes:
        scale_px_per_m: pixels of this image per metre of height, 0 or more.
        angle_rad: in [0, 2 pi), as in geopose/geometry.py.
    """

    scale_px_per_m: float
    angle_rad: float


@dataclass(frozen=True)
class Flows:
    """All that is known of an image's flow.

    Attributes:
        used: what the products go by.
        source: where `used` comes from: "model", "rpc" or "sensor" (azimuth and incidence).
        model: the model's, over all tiles; None = it gave no direction.
        model_scale_spread: standard deviation of the tiles' scales, px/m, by the same weights.
        model_angle_spread_rad: circular standard deviation of the tiles' angles, the same.
        sensor: by RPCs or the sensor's angles; None = unknown.
        sensor_spread_px: how far one vector misses a height of 100 m; None = unknown.
        field: of the used flow, by place, where it varies or `--local-flow` asks; None = one
            vector for all.
    """

    used: Flow
    source: str
    model: Flow | None = None
    model_scale_spread: float = 0.0
    model_angle_spread_rad: float = 0.0
    sensor: Flow | None = None
    sensor_spread_px: float | None = None
    field: FlowField | None = None


@dataclass(frozen=True)
class PredictedImage:
    """One predicted image.

    Attributes:
        source: the image's file.
        stem: what its products are called after.
        shape: (height, width); of all maps.
        georeference: of the image.
        gsd_m: metres of ground per pixel of this image.
        rgb: uint8, H x W x 3, as stretched for the model.
        valid: bool, H x W; False where the source has no data, and then in every product.
        agl_m: float32, H x W; NaN = no data.
        magnitude_px: float32, H x W, length of flow; NaN = no data.
        uncertainty_m: float32, H x W, spread over views and models; None = there was only one.
        flows: of the image.
        facts: provenance, for the products' tags: model, stretch, bands, views, version.
        warnings: what the user was told about this image.
    """

    source: Path
    stem: str
    shape: tuple[int, int]
    georeference: Georeference
    gsd_m: float
    rgb: Windows
    valid: Windows
    agl_m: Windows
    magnitude_px: Windows
    uncertainty_m: Windows | None
    flows: Flows
    facts: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
