"""What a pickle inside a checkpoint may build: weights, numbers, text and plain containers.

The names that old trainers left in their files lead to stand-ins here, so that reading a file calls
nothing of the packages it names.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from geopose.checkpoints.formats import omegaconf_pickles

_MOST_VALUES, _MOST_DIMENSIONS = 1_000_000, 8


class _PickledDtype:
    """Stands in for numpy.dtype while a file is read: numbers and text only, no state of numpy."""

    def __init__(self, code: str, *_flags: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,4}", str(code)):
            raise pickle.UnpicklingError(f"numpy type {str(code)[:20]!r} is not a plain scalar")
        self.code = str(code)
        self.byte_order = "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("numpy type with an unknown byte order")
        self.byte_order = state[1]

    def numpy(self) -> np.dtype:
        """The type itself."""
        return np.dtype(self.byte_order + self.code)


def _numpy_scalar(dtype: _PickledDtype, data: bytes) -> Any:
    """Stands in for numpy's scalar constructor: returns the plain Python number or text."""
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("malformed numpy scalar")
    return np.frombuffer(data, dtype=dtype.numpy(), count=1)[0].item()


class _PickledArray(list):
    """Stands in for a numpy array while a file is read, and ends as the list of its values."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("malformed numpy array")
        flat = np.frombuffer(data, dtype=dtype.numpy())
        if flat.size > _MOST_VALUES or len(shape) > _MOST_DIMENSIONS:  # lists take far more memory
            raise pickle.UnpicklingError("numpy array too large for a metric")
        values = flat.reshape(shape, order="F" if is_fortran else "C").tolist()
        self[:] = values if isinstance(values, list) else [values]


def _numpy_array(_kind: Any, _shape: Any, _typecode: Any) -> _PickledArray:
    """Stands in for numpy's array constructor; the values follow as its state."""
    return _PickledArray()


def _plain_dict(_default_factory: Any = None) -> dict:
    """Stands in for defaultdict, which torch's unpickler refuses to fill: an ordinary dict."""
    return {}


# Beside torch's own weights-only list: what trainers leave among their metrics, and in configs.
# Numpy's names (of version 1 and 2) lead to the stand-ins above, so that nothing of numpy itself is
# called.
ALLOWED: list[Callable | tuple[Callable, str]] = [
    OrderedDict,
    *(
        (factory, f"{module}.{factory.__name__}")
        for factory in (dict, list, int, float, set)
        for module in ("builtins", "__builtin__")
    ),
    (_plain_dict, "collections.defaultdict"),
    (_PickledDtype, "numpy.dtype"),
    (_PickledArray, "numpy.ndarray"),
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for stand_in, name in ((_numpy_scalar, "scalar"), (_numpy_array, "_reconstruct"))
    ),
    *omegaconf_pickles.ALLOWED,
]
