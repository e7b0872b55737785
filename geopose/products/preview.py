"""`<stem>_PREVIEW.png`: the image, its heights and the rectified image side by side.

In: thumbnails, gsd and flow. Out: a picture with a colour bar and a scale bar in metres, the flow
from roof to ground, and north where it is known.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from geopose.geometry import angle_to_vector
from geopose.output.preview import HEIGHT_COLOURS, NO_DATA_GREY, save_figure
from geopose.products.predicted import Flow

WIDEST_PX = 1600
_DPI = 100
_SIDE, _GAP, _TOP, _BOTTOM = 28, 16, 76, 74  # px around panels
_PANELS = 3
_TALLEST, _FLATTEST = 2.0, 0.25  # height / width of a panel; a longer image has margins
_INK, _MUTED = "#1c2733", "#5c6b7a"
_NICE = (1.0, 2.0, 5.0)
_TALLEST_ROOF_M = 500.0
_OVERLAY = "#10151bcc"


@dataclass(frozen=True)
class Thumbnails:
    """An image made small; all of one size.

    Attributes:
        image: h x w x 4 uint8, colours and opacity.
        rectified: the same; where the ground is hidden it is transparent.
        agl_m: h x w float32, NaN = no data.
        occlusion_known: h x w bool, False where nobody knows what stands there.
        pixel_m: metres of ground of a pixel of these.
    """

    image: NDArray[np.uint8]
    rectified: NDArray[np.uint8]
    agl_m: NDArray[np.float32]
    occlusion_known: NDArray[np.bool_]
    pixel_m: float


def draw_preview(
    path: Path,
    small: Thumbnails,
    title: str,
    note: str,
    flow: Flow,
    flow_source: str,
    gsd_m: float,
    top_m: float,
    north: tuple[float, float] | None,
) -> None:
    """Draws the preview of an image.

    Args:
        path: the .png file.
        small: the image.
        title: the first line.
        note: the second one: size, gsd, model.
        flow: of the image, at its full size.
        flow_source: where that comes from.
        gsd_m: metres of a pixel of the image at its full size.
        top_m: upper end of the colour scale, metres.
        north: (x, y) in the image, or None.

    Raises:
        RunError: the file cannot be written.
    """
    height, width = small.agl_m.shape
    panel_w = (WIDEST_PX - 2 * _SIDE - (_PANELS - 1) * _GAP) / _PANELS
    panel_h = panel_w * min(max(height / width, _FLATTEST), _TALLEST)
    total_h = panel_h + _TOP + _BOTTOM
    figure = Figure(figsize=(WIDEST_PX / _DPI, total_h / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)

    def box(column: int) -> tuple[float, float, float, float]:
        left = _SIDE + column * (panel_w + _GAP)
        return left / WIDEST_PX, _BOTTOM / total_h, panel_w / WIDEST_PX, panel_h / total_h

    axes = [figure.add_axes(box(column)) for column in range(_PANELS)]
    for panel in axes:
        _prepare(panel, width, height)
    extent = (0, width, height, 0)
    axes[0].imshow(small.image, extent=extent)
    drawn = axes[1].imshow(small.agl_m, extent=extent, cmap=HEIGHT_COLOURS, vmin=0.0, vmax=top_m)
    _draw_occlusion(axes[2], small)
    axes[2].imshow(small.rectified, extent=extent)
    unit = panel_w / width  # pixels of the picture per pixel of the thumbnail
    _scale_bar(axes[0], small.pixel_m, (height, width), unit)
    _compass(axes[0], flow, gsd_m / small.pixel_m, (height, width), unit, north)
    bar_box = (box(1)[0], (_BOTTOM - 36) / total_h, box(1)[2], 10 / total_h)
    bar = figure.colorbar(drawn, cax=figure.add_axes(bar_box), orientation="horizontal")
    bar.ax.tick_params(labelsize=10, length=3, color=_MUTED, labelcolor=_INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    heights = "height above ground, m"
    if not np.isfinite(small.agl_m).any():
        heights += ": no data"
    _captions(
        figure, total_h, [box(column)[0] for column in range(_PANELS)],
        ("image, as seen", heights,
         f"rectified by the {_words(flow_source)}'s flow; hatched: hidden ground"),
    )  # fmt: skip
    figure.text(_SIDE / WIDEST_PX, 1 - 30 / total_h, title, fontsize=17, weight="bold", color=_INK)
    figure.text(
        1 - _SIDE / WIDEST_PX, 1 - 30 / total_h, note, fontsize=11, color=_MUTED, ha="right"
    )
    save_figure(figure, path)


def _words(source: str) -> str:
    return {"rpc": "RPC"}.get(source, source)


def _prepare(axes: Axes, width: int, height: int) -> None:
    axes.set_facecolor(NO_DATA_GREY)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", anchor="C")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _captions(figure: Figure, total_h: float, lefts: list[float], texts: tuple[str, ...]) -> None:
    for left, text in zip(lefts, texts, strict=True):
        figure.text(left, 1 - 66 / total_h, text, fontsize=11.5, color=_MUTED)


def _draw_occlusion(axes: Axes, small: Thumbnails) -> None:
    """Hatches hidden ground, below the rectified image, which is transparent there."""
    height, width = small.agl_m.shape
    rows, columns = np.mgrid[:height, :width]
    period = max(max(height, width) / 90.0, 4.0)
    stripes = ((rows + columns) % period) < period / 3
    hidden = np.where(stripes, 120, 60).astype(np.uint8)
    grey = np.where(small.occlusion_known, hidden, 191).astype(np.uint8)
    axes.imshow(np.dstack([grey] * 3), extent=(0, width, height, 0))


def nice_length(longest: float) -> float:
    """The largest of 1, 2, 5, 10 ... (and 0.5, 0.2 ...) that is not longer; 0 for 0."""
    if not (longest > 0 and math.isfinite(longest)):
        return 0.0
    power = 10.0 ** math.floor(math.log10(longest))
    return max(digit * power for digit in _NICE if digit * power <= longest * (1 + 1e-9))


def _scale_bar(axes: Axes, pixel_m: float, size: tuple[int, int], unit: float) -> None:
    """A bar in metres of ground, low on the left."""
    length_m = nice_length(0.3 * size[1] * pixel_m)
    if length_m == 0.0:
        return
    length, edge = length_m / pixel_m, 20 / unit
    y = size[0] - edge
    stroke = [withStroke(linewidth=5, foreground=_OVERLAY)]
    axes.plot(
        [edge, edge, edge + length, edge + length], [y - 6 / unit, y, y, y - 6 / unit],
        color="white", linewidth=2, solid_capstyle="butt", path_effects=stroke,
    )  # fmt: skip
    label = f"{length_m:g} m" if length_m < 1000 else f"{length_m / 1000:g} km"
    axes.text(
        edge + length / 2, y - 10 / unit, label, color="white", fontsize=12, weight="bold",
        ha="center", va="bottom", path_effects=[withStroke(linewidth=3, foreground=_OVERLAY)],
    )  # fmt: skip


def _compass(
    axes: Axes,
    flow: Flow,
    shrink: float,
    size: tuple[int, int],
    unit: float,
    north: tuple[float, float] | None,
) -> None:
    """The flow's arrow to scale, in a box high on the right, and north's beside it."""
    wide, tall = (290 if north is not None else 214) / unit, 84 / unit
    left, top = size[1] - wide - 12 / unit, 12 / unit
    axes.add_patch(
        FancyBboxPatch(
            (left, top), wide, tall, boxstyle=f"round,pad=0,rounding_size={8 / unit}",
            facecolor=_OVERLAY, edgecolor="none", zorder=3,
        )
    )  # fmt: skip
    centre = (left + 38 / unit, top + tall / 2)
    roof_m = nice_length(62 / unit / max(flow.scale_px_per_m * shrink, 1e-9))
    angle = f"{math.degrees(flow.angle_rad):.0f}\N{DEGREE SIGN}"
    text = [f"{flow.scale_px_per_m:.3g} px/m, {angle}"]
    if flow.scale_px_per_m == 0.0:
        text = ["none: seen from above"]
    else:
        to_scale = roof_m <= _TALLEST_ROOF_M
        length = flow.scale_px_per_m * shrink * roof_m if to_scale else 50 / unit
        _arrow(axes, centre, angle_to_vector(flow.angle_rad), length, "#ff5a4f")
        if to_scale:
            text.append(f"arrow: of {roof_m:g} m")
    lines = ["flow, roof to ground", *text]
    axes.text(
        left + 74 / unit, top + tall / 2, "\n".join(lines), color="white", fontsize=9.5,
        va="center", linespacing=1.5, zorder=5,
    )  # fmt: skip
    if north is not None:
        place = (left + wide - 44 / unit, top + tall / 2)
        _arrow(axes, place, np.array(north), 44 / unit, "white")
        tip = np.array(place) + 34 / unit * np.array(north)
        axes.text(
            tip[0], tip[1], "N", color="white", fontsize=9.5, weight="bold", ha="center",
            va="center", zorder=5,
        )  # fmt: skip


def _arrow(
    axes: Axes, centre: tuple[float, float], direction: NDArray, length: float, colour: str
) -> None:
    middle = np.array(centre)
    start, end = middle - direction * length / 2, middle + direction * length / 2
    axes.annotate(
        "", xy=tuple(end), xytext=tuple(start), zorder=4,
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.4, "mutation_scale": 15,
                    "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
