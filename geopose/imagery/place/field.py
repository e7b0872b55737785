"""Flow that varies over an image: vectors on a coarse grid, and how a flow file holds them.

In: nodes, or a `_VFLOW.json` with a "field". Out: flow vectors anywhere in the image.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.data.decoding import read_bytes
from geopose.data.heights import CM_PER_M
from geopose.errors import InputError, one_line

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FlowField:
    """Flow on a coarse grid, for images over which it varies too much for one vector.

    Attributes:
        columns: of the nodes, ascending pixels, n.
        rows: the same, m.
        px_per_m: flow vectors (x, y) per metre of height at the nodes, m x n x 2; NaN = unknown.
    """

    columns: Array
    rows: Array
    px_per_m: Array

    def at(self, column: Any, row: Any) -> Array:
        """Flow vectors (x, y) in px per metre of height at pixels, bilinear: (..., 2)."""
        x, y = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (column, row)))
        i, u = _cell(self.rows, y)
        j, v = _cell(self.columns, x)
        u, v = u[..., None], v[..., None]
        node = self.px_per_m
        upper = (1 - v) * node[i, j] + v * node[i, j + 1]
        lower = (1 - v) * node[i + 1, j] + v * node[i + 1, j + 1]
        return (1 - u) * upper + u * lower

    def known(self, elsewhere: Array) -> "FlowField":
        """The same with one vector (x, y) at the nodes where flow is unknown."""
        unknown = np.isnan(self.px_per_m).any(axis=-1, keepdims=True)
        return FlowField(self.columns, self.rows, np.where(unknown, elsewhere, self.px_per_m))

    def steady_px(self, height_m: float, within_px: float) -> float:
        """Side of a square in which a height's flow stays so close to that of the middle."""
        per_px = 0.0
        for axis, nodes in enumerate((self.rows, self.columns)):
            change = np.hypot(*np.moveaxis(np.diff(self.px_per_m, axis=axis), -1, 0))
            per_px += float(np.max(change / np.expand_dims(np.diff(nodes), 1 - axis)))
        moved = per_px * height_m
        return 2.0 * within_px / moved if moved > 0 else float("inf")


def _cell(nodes: Array, at: Array) -> tuple[NDArray[np.intp], Array]:
    """Which cell of an axis a place lies in, and how far along it; outside, the border's flow."""
    inside = np.clip(at, nodes[0], nodes[-1])
    cell = np.clip(np.searchsorted(nodes, inside, side="right") - 1, 0, nodes.size - 2)
    return cell, (inside - nodes[cell]) / (nodes[cell + 1] - nodes[cell])


def read_field(path: Path | str) -> FlowField | None:
    """The "field" of a flow file: columns and rows of its nodes, x and y in px per cm there.

    Returns:
        None where the file has none: one vector is good for the whole image.

    Raises:
        InputError: no such file, not JSON, or a field that is none.
    """
    path = Path(path)
    try:
        content = json.loads(read_bytes(path))
        field = content.get("field")
        if field is None:
            return None
        columns, rows = (np.asarray(field[name], np.float64) for name in ("columns", "rows"))
        vectors = np.stack([np.asarray(field[name], np.float64) for name in "xy"], axis=-1)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error, 120)
        raise InputError(f"{path}: {_EXPECTED} ({what})") from error
    good = vectors.shape == (rows.size, columns.size, 2) and not np.isinf(vectors).any()
    if not (good and all(_ascending(nodes) for nodes in (columns, rows))):
        raise InputError(
            f"{path}: {_EXPECTED} (columns {columns.shape}, rows {rows.shape}, vectors "
            f"{vectors.shape}; two ascending nodes or more a side, finite numbers or null)"
        )
    return FlowField(columns, rows, vectors * CM_PER_M)


_EXPECTED = '"field" is not a flow field; expected columns, rows, and x, y in px per cm'


def _ascending(nodes: Array) -> bool:
    return nodes.ndim == 1 and nodes.size > 1 and bool((np.diff(nodes) > 0).all())
