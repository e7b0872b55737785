"""Pictures of predictions: image, heights with a bar in metres, flow as arrows.

In: 8-bit RGB, heights in metres (NaN = no data), scale in px/m, angle in radians. Out: a file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from geopose.files.atomic import atomic_path
from geopose.geometry import angle_to_vector

_DPI = 110
_PANEL_IN = 3.4  # width of one panel
_SHOWN_PX = 640  # longer side of an image before drawing; more is not visible in a panel
_ARROWS = 16  # along the longer side
HEIGHT_COLOURS = "viridis"
NO_DATA_GREY = "0.75"


@dataclass(frozen=True)
class Pose:
    """Height map and flow of one image, true or predicted.

    Attributes:
        agl_m: H x W, NaN = no data.
        scale_px_per_m: length of the flow of one metre.
        angle_rad: its direction.
    """

    agl_m: NDArray[np.floating]
    scale_px_per_m: float
    angle_rad: float

    @property
    def flow_text(self) -> str:
        """Scale and angle for a title."""
        return f"{self.scale_px_per_m:.2f} px/m, {math.degrees(self.angle_rad):.0f}\N{DEGREE SIGN}"


@dataclass(frozen=True)
class PreviewRow:
    """One scene of a preview: its image, the truth and the prediction."""

    title: str
    rgb: NDArray[np.uint8]
    true: Pose
    predicted: Pose


def save_visualization(
    path: Path,
    rgb: NDArray[np.uint8],
    agl_m: NDArray[np.floating],
    scale_px_per_m: float,
    angle_rad: float,
) -> None:
    """Picture of one prediction: image | heights | flow.

    Args:
        path: file to write; its suffix chooses the format.
        rgb: H x W x 3.
        agl_m: H x W, metres.
        scale_px_per_m: predicted scale.
        angle_rad: predicted angle.
    """
    pose = Pose(agl_m, scale_px_per_m, angle_rad)
    figure = _figure(1, 3, _aspect(rgb))
    axes = figure.subplots(1, 3, squeeze=False)[0]
    _show_image(axes[0], rgb, path.name.removesuffix(path.suffix).removesuffix("_VIZ"))
    heights = _show_heights(axes[1], pose, _top_m([pose]), _height_text("height", pose))
    magnification = _magnification([pose], rgb.shape[:2])
    _show_flow(axes[2], rgb, pose, magnification, f"flow: {pose.flow_text}")
    _add_bar(figure, heights, [axes[1]], 1)
    _label_arrows(axes[2], magnification)
    save_figure(figure, path)


def draw_preview(path: Path, rows: Sequence[PreviewRow], heading: str = "") -> None:
    """Picture of several scenes: image | true, predicted height | true, predicted flow.

    All heights share one colour scale and one bar; the arrows of a scene share one magnification.

    Args:
        path: file to write.
        rows: at least one scene.
        heading: a line above the picture.
    """
    save_figure(_preview_figure(rows, heading), path)


def render_preview(rows: Sequence[PreviewRow]) -> NDArray[np.uint8]:
    """The picture of `draw_preview` as an H x W x 3 array."""
    figure = _preview_figure(rows, "")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _preview_figure(rows: Sequence[PreviewRow], heading: str) -> Figure:
    top_m = _top_m([pose for row in rows for pose in (row.true, row.predicted)])
    figure = _figure(len(rows), 5, max(_aspect(row.rgb) for row in rows))
    grid = figure.subplots(len(rows), 5, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        _show_image(axes[0], row.rgb, row.title)
        heights = _show_heights(axes[1], row.true, top_m, _height_text("true height", row.true))
        _show_heights(axes[2], row.predicted, top_m, _height_text("predicted", row.predicted))
        magnification = _magnification([row.true, row.predicted], row.rgb.shape[:2])
        _show_flow(axes[3], row.rgb, row.true, magnification, f"true flow: {row.true.flow_text}")
        _show_flow(
            axes[4], row.rgb, row.predicted, magnification, f"predicted: {row.predicted.flow_text}"
        )
        _label_arrows(axes[3], magnification)
        _label_arrows(axes[4], magnification)
    _add_bar(figure, heights, list(grid[:, 1:3].ravel()), len(rows))
    if heading:
        figure.suptitle(heading, fontsize=12)
    return figure


def _figure(rows: int, columns: int, aspect: float) -> Figure:
    """Sized so that panels of height / width = aspect fill it, with room for titles and bar."""
    figure = Figure(
        figsize=(columns * _PANEL_IN + 0.9, rows * (_PANEL_IN * aspect + 0.5) + 0.2),
        dpi=_DPI,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    return figure


def _aspect(rgb: NDArray[np.uint8]) -> float:
    return min(3.0, max(0.25, rgb.shape[0] / rgb.shape[1]))


def _show_image(axes: Axes, rgb: NDArray[np.uint8], title: str) -> None:
    height, width = rgb.shape[:2]
    axes.imshow(_thin(rgb), extent=(0, width, height, 0))
    _finish(axes, title)


def _show_heights(axes: Axes, pose: Pose, top_m: float, title: str) -> AxesImage:
    height, width = pose.agl_m.shape
    axes.set_facecolor(NO_DATA_GREY)  # seen where there is no data
    drawn = axes.imshow(
        _thin(pose.agl_m), extent=(0, width, height, 0), cmap=HEIGHT_COLOURS, vmin=0.0, vmax=top_m
    )
    _finish(axes, title)
    return drawn


def _show_flow(
    axes: Axes, rgb: NDArray[np.uint8], pose: Pose, magnification: float, title: str
) -> None:
    """Arrows from where a surface is seen towards its ground point, over the faded image."""
    height, width = rgb.shape[:2]
    faded = (0.55 * _thin(rgb).astype(np.float32) + 0.45 * 255).astype(np.uint8)
    axes.imshow(faded, extent=(0, width, height, 0))
    rows, columns = _arrow_grid((height, width))
    length_px = pose.agl_m[np.ix_(rows, columns)] * pose.scale_px_per_m * magnification
    x, y = np.meshgrid(columns + 0.5, rows + 0.5)
    # Shorter ones would be dots. NaN compares false and is not drawn either.
    drawn = length_px > 0.25 * _spacing((height, width))
    direction = angle_to_vector(pose.angle_rad)
    axes.quiver(
        x[drawn], y[drawn], length_px[drawn] * direction[0], length_px[drawn] * direction[1],
        angles="xy", scale_units="xy", scale=1.0, color="#d7191c", edgecolor="white",
        linewidth=0.5, width=0.009, headwidth=4.0, headlength=4.5, headaxislength=4.0,
        minlength=0,
    )  # fmt: skip
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    _finish(axes, title)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def _label_arrows(axes: Axes, magnification: float) -> None:
    if magnification == 1.0:
        text = "arrows: true length"
    else:
        text = f"arrows: {magnification:g} x their length"
    axes.set_xlabel(text, fontsize=9)


def _add_bar(figure: Figure, heights: AxesImage, axes: list[Axes], rows: int) -> None:
    bar = figure.colorbar(
        heights, ax=axes, fraction=0.05, pad=0.02, extend="max", extendfrac=0.02, aspect=30 * rows
    )
    bar.set_label("height above ground (m)", fontsize=9)
    bar.ax.tick_params(labelsize=9)


def _height_text(what: str, pose: Pose) -> str:
    known = pose.agl_m[np.isfinite(pose.agl_m)]
    if known.size == 0:
        return f"{what}: no data"
    return f"{what}: up to {known.max():.1f} m"


def _top_m(poses: Sequence[Pose]) -> float:
    """Upper end of the colour scale: nearly the highest, so that one mast does not darken all."""
    tops = [
        np.percentile(known, 99.5)
        for pose in poses
        if (known := pose.agl_m[np.isfinite(pose.agl_m)]).size
    ]
    return max(1.0, *tops) if tops else 1.0


def _spacing(size: tuple[int, int]) -> int:
    return max(1, math.ceil(max(size) / _ARROWS))


def _arrow_grid(size: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    step = _spacing(size)
    return _every(step, size[0]), _every(step, size[1])


def _every(step: int, length: int) -> NDArray[np.intp]:
    """Every step-th place from the middle of the first step; at least one, however thin it is."""
    return np.arange(min(step // 2, length // 2), length, step)


def _magnification(poses: Sequence[Pose], size: tuple[int, int]) -> float:
    """1, 2, 5, 10 ... or 0.5, 0.2 ...: what makes the longest arrows about one and a half steps."""
    grid = np.ix_(*_arrow_grid(size))
    lengths = np.concatenate([(p.agl_m[grid] * p.scale_px_per_m).ravel() for p in poses])
    lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
    if lengths.size == 0:
        return 1.0
    wanted = 1.5 * _spacing(size) / max(1e-6, float(np.percentile(lengths, 95)))
    choices = [digit * 10.0**power for power in range(-2, 3) for digit in (1, 2, 5)]
    return max((choice for choice in choices if choice <= wanted), default=choices[0])


def _thin(image: NDArray) -> NDArray:
    """Every k-th pixel, so that drawing a large image is quick; heights are not mixed."""
    step = max(1, max(image.shape[:2]) // _SHOWN_PX)
    return image[np.ix_(_every(step, image.shape[0]), _every(step, image.shape[1]))]


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a drawing; the file appears whole, its suffix chooses the format."""
    with atomic_path(path) as partial:
        figure.savefig(partial, facecolor="white")
