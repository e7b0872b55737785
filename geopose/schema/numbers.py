"""What counts as a number in a config, a file or an argument: true and false do not."""

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is an int or a float; NaN and infinity are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Whether a value is an int of this range; 2.0 is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
