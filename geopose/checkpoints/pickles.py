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


def _numpy_scalar(dtype: _PickledDtype, data: bytes) -> Any:
    """Stands in for numpy's scalar constructor: returns the plain Python number or text."""
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("malformed numpy scalar")
    return np.frombuffer(data, dtype=np.dtype(dtype.byte_order + dtype.code), count=1)[0].item()


def _plain_dict(_default_factory: Any = None) -> dict:
    """Stands in for defaultdict, which torch's unpickler refuses to fill: an ordinary dict."""
    return {}


# Beside torch's own weights-only list: what trainers leave among their metrics. Numpy's names (of
# version 1 and 2) lead to the stand-ins above, so that nothing of numpy itself is called.
ALLOWED: list[Callable | tuple[Callable, str]] = [
    OrderedDict,
    *(
        (factory, f"{module}.{factory.__name__}")
        for factory in (dict, list, int, float, set)
        for module in ("builtins", "__builtin__")
    ),
    (_plain_dict, "collections.defaultdict"),
    (_PickledDtype, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]
