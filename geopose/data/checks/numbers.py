"""What ground sampling, scale and heights can be, and which unit would explain one that cannot.

In: numbers in the program's units. Out: "" or what is wrong with them, for an error message.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geopose.data.heights import NODATA_CM

GSD_LEAST_M, GSD_MOST_M = 0.05, 20.0
# Scale x gsd is the tangent of the angle from the vertical under which the ground is seen.
_LARGEST_TANGENT = 6.0  # 80 degrees
_SMALLEST_TANGENT = 0.01  # 0.6 degrees; no set of oblique images stays below in all of them
_HIGHEST_MEDIAN_CM = 10_000  # half of all pixels 100 m above the ground
_HIGHEST_CM = 45_000  # 1 of 100 pixels on a skyscraper of 450 m
_LOWEST_TOP_CM = 100  # 1 of 1000 pixels on a car or a bush
_LEAST_PIXELS = 1000  # fewer say nothing about a share of them


def gsd_problem(gsd_m: float) -> str:
    """What is wrong with metres per pixel, and why perhaps."""
    if GSD_LEAST_M <= gsd_m <= GSD_MOST_M:
        return ""
    problem = f"{gsd_m:g} metres per pixel, expected {GSD_LEAST_M:g} to {GSD_MOST_M:g}"
    for factor, unit in ((100, "centimetres"), (1000, "millimetres")):
        if GSD_LEAST_M <= gsd_m / factor <= GSD_MOST_M:
            return f"{problem}; if these are {unit}, write {gsd_m / factor:g}"
    for factor, unit in ((1000, "kilometres"), (111_000, "degrees")):
        if GSD_LEAST_M <= gsd_m * factor <= GSD_MOST_M:
            return f"{problem}; if these are {unit}, write {gsd_m * factor:.3g}"
    return f"{problem}; write metres"


def scale_problem(scale_px_per_m: float, gsd_m: float) -> str:
    """What is wrong with the scale of an image."""
    tangent = scale_px_per_m * gsd_m
    if tangent <= _LARGEST_TANGENT:
        return ""
    hint = ""
    if tangent / 100 <= _LARGEST_TANGENT:
        hint = f"; if it is px per metre, write {scale_px_per_m / 1e4:.3g}"
    return (
        f"scale is {scale_px_per_m / 100:.4g} px per cm, which at {gsd_m:g} metres per pixel no "
        f"view of the ground gives{hint or '; expected px per cm'}"
    )


def small_scales_problem(tangents: list[float]) -> str:
    """What is wrong with the scales of all images, each times its gsd."""
    largest = max(tangents, default=0.0)
    if largest == 0.0 or largest >= _SMALLEST_TANGENT:
        return ""
    return (
        "the scales of all images are so small that every one would be seen straight from above; "
        "scale is px per cm, 100 times those would fit: perhaps they are px per mm or divided by "
        "100 twice"
    )


@dataclass
class HeightCounts:
    """How often each height occurs in some height maps."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NODATA_CM + 1, np.int64))

    def add(self, agl_cm: NDArray[np.uint16]) -> bool:
        """Counts a map's centimetres; returns whether any of them is known."""
        counts = np.bincount(agl_cm.ravel(), minlength=NODATA_CM + 1)
        known = bool(counts[:NODATA_CM].any())
        self.counts += counts
        return known

    def problem(self) -> str:
        """What is wrong with the heights, taken together."""
        known = self.counts[:NODATA_CM]
        total = int(known.sum())
        if total < _LEAST_PIXELS or known[0] == total:
            return ""
        below = np.cumsum(known)
        median, high, top = (int(np.searchsorted(below, s * total)) for s in (0.5, 0.99, 0.999))
        if top < _LOWEST_TOP_CM:
            return (
                f"hardly any height is above {top / 100:.2f} m; heights are whole centimetres, "
                "100 times these would fit: perhaps they are metres"
            )
        if median > _HIGHEST_MEDIAN_CM or high > _HIGHEST_CM:
            return (
                f"half of the heights are above {median / 100:.2f} m and 1 of 100 is above "
                f"{high / 100:.2f} m; heights are centimetres above the ground: perhaps these are "
                "millimetres (write a tenth), 100 times too large, or heights above the sea"
            )
        return ""
