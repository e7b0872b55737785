"""Tells predictions in another unit than the truth: both in, a hint in the log out."""

import logging

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Predicted by true: what a unit mixed up gives, within what an ordinary model is off.
_SPREAD = 1.5
_HEIGHTS = {
    0.01: "predicted heights are a hundredth of the true ones: are they metres, not centimetres?",
    0.1: "predicted heights are a tenth of the true ones: are they decimetres, not centimetres?",
    10.0: "predicted heights are ten times the true ones: are they millimetres, not centimetres?",
    100.0: "predicted heights are 100 times the true ones: were they multiplied by 100 twice?",
}
_SCALES = {
    0.01: "predicted scales are a hundredth of the true ones: were they divided by 100 twice?",
    100.0: "predicted scales are 100 times the true ones: are they px per metre, not per cm?",
}


class UnitRatios:
    """Sums of predicted and true values over images."""

    def __init__(self) -> None:
        self._heights, self._scales = np.zeros(2), np.zeros(2)

    def add(
        self,
        pred_agl_m: NDArray[np.floating],
        true_agl_m: NDArray[np.floating],
        pred_scale: float,
        true_scale: float,
    ) -> None:
        """Adds an image; NaN in the true heights does not count."""
        known = np.isfinite(true_agl_m)
        self._heights += (pred_agl_m[known].sum(), true_agl_m[known].sum())
        self._scales += (pred_scale, true_scale)

    def hints(self) -> list[str]:
        """What may be in another unit."""
        found = []
        for (predicted, true), hints in ((self._heights, _HEIGHTS), (self._scales, _SCALES)):
            if predicted > 0 and true > 0:
                found += [
                    hint
                    for ratio, hint in hints.items()
                    if 1 / _SPREAD < predicted / true / ratio < _SPREAD
                ]
        return found

    def mention(self) -> None:
        """Says it."""
        for hint in self.hints():
            logger.warning("%s", hint)
