"""Draws the published networks with the shapes that they have for an image of 2048 x 2048 pixels.

    python -m scripts.draw_networks     # writes docs/images/network_<name>.svg

The shapes are read off the networks themselves: one image follows the layers on the "meta" device.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from benchmarks.models import SIDE_PX, shipped_model

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
WIDTH, HEIGHT = 2.3, 0.78  # of a box, in the drawing's units
ENCODER, DECODER, HEAD, PLAIN, RESULT = "#cfe0f5", "#d5ecd4", "#fbe3c4", "#eeeeee", "#f4d3d8"
LINE = "#444444"
X = "\N{MULTIPLICATION SIGN}"
_COLUMN, _ROW = 2.85, 1.2  # distances between boxes
_INCH = 0.8  # of a unit
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Box:
    """A box with its centre."""

    x: float
    y: float
    width: float = WIDTH

    @property
    def left(self) -> tuple[float, float]:
        """Middle of the left edge."""
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> tuple[float, float]:
        """Middle of the right edge."""
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> tuple[float, float]:
        """Middle of the upper edge."""
        return self.x, self.y + HEIGHT / 2

    @property
    def bottom(self) -> tuple[float, float]:
        """Middle of the lower edge."""
        return self.x, self.y - HEIGHT / 2


class Drawing:
    """Boxes and arrows on one sheet."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.tops: list[float] = []  # upper edges of the boxes

    def box(self, x: float, y: float, text: str, shape: str, colour: str) -> Box:
        """What happens, above the shape that comes out."""
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = "round,pad=0,rounding_size=0.1"
        self.axes.add_patch(
            FancyBboxPatch(corner, WIDTH, HEIGHT, style, facecolor=colour, edgecolor=LINE, lw=0.8)
        )
        self.axes.text(x, y + 0.16, text, ha="center", va="center", fontsize=8.5)
        self.axes.text(x, y - 0.17, shape, ha="center", va="center", fontsize=8.5, weight="bold")
        self.tops.append(y + HEIGHT / 2)
        return Box(x, y)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        """A straight arrow, with a word above its middle."""
        self.axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 1.0}
        )
        if text:
            x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            upright = start[0] == end[0]
            place = (x + 0.08, y) if upright else (x, y + 0.14)
            side = "left" if upright else "center"
            self.axes.text(*place, text, ha=side, va="center", fontsize=7.5, color=LINE)

    def line(self, *points: tuple[float, float]) -> None:
        """A line through some points."""
        self.axes.plot(*zip(*points, strict=True), color=LINE, lw=1.0)


def module_shapes(model: nn.Module, *inputs: Tensor) -> Shapes:
    """Shape of what every module with one output puts out, without the batch, by name."""
    shapes: Shapes = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape[1:])

        return hook

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules()]
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    return shapes


def size(shape: tuple[int, ...]) -> str:
    """A shape in words of the trade."""
    return f" {X} ".join(map(str, shape))


def _pyramid(drawing: Drawing, model: Any) -> tuple[list[Box], list[Box]]:
    """Encoder down the left, decoder up beside it; both fine to coarse."""
    encoder, decoder = model.encoder, model.decoder
    strides: list[int] = list(encoder.strides)
    channels: list[int] = list(encoder.channels)
    outputs: list[int] = list(decoder.output_spec.channels)
    ups = f"{X}2 rdtsc" if "Residual" in str(decoder.upsamples) else f"{X}2 bilinear"
    block = f"two 3{X}3" if type(decoder.blocks[0]).__name__ == "UnetBlock" else "residual block"
    image = drawing.box(0, 0, "image", size((3, SIDE_PX, SIDE_PX)), PLAIN)
    left, right, above = [], [], image
    for stride, width in zip(strides, channels, strict=True):
        side = SIDE_PX // stride
        y = -_ROW * (stride.bit_length() - 1)
        level = drawing.box(0, y, f"encoder, stride {stride}", size((width, side, side)), ENCODER)
        drawing.arrow(above.bottom, level.top)
        left.append(level)
        above = level
    for stride, width, skip in zip(strides, outputs, left, strict=False):
        side = SIDE_PX // stride
        right.append(
            drawing.box(_COLUMN, skip.y, f"concat, {block}", size((width, side, side)), DECODER)
        )
        drawing.arrow(skip.right, right[-1].left, "skip")
    for fine, coarse in pairwise(right):
        drawing.arrow(coarse.top, fine.bottom, ups)
    drawing.line(left[-1].right, (_COLUMN, left[-1].y))
    drawing.arrow((_COLUMN, left[-1].y), right[-1].bottom, ups)
    return left, right


def _branches(
    drawing: Drawing, x: float, starts: tuple[Box, Box], stages: list[tuple[str, str, str]]
) -> tuple[Box, Box]:
    """The height branch above the magnitude branch; gsd joins the former. Returns the results."""
    ends = []
    for start, name in zip(starts, ("height", "magnitude"), strict=True):
        here, last = x, start
        for text, with_gsd, shape in stages:
            gsd = name == "height" and with_gsd
            label = f"{text} on [features, gsd]" if gsd else text
            stage = drawing.box(here, start.y, label, shape, HEAD)
            if gsd:
                plane = drawing.box(here, start.y + _ROW, "gsd, m/px, as a plane", with_gsd, PLAIN)
                drawing.arrow(plane.bottom, stage.top)
            drawing.arrow(last.right, stage.left)
            here, last = here + _COLUMN, stage
        text = "height, m" if name == "height" else "magnitude, px"
        result = drawing.box(here, start.y, text, size((1, SIDE_PX, SIDE_PX)), RESULT)
        drawing.arrow(last.right, result.left)
        ends.append(result)
    return ends[0], ends[1]


def _simple_head(drawing: Drawing, finest: Box, shapes: Shapes) -> tuple[Box, Box]:
    """SimpleAGLHead: two branches apart from the decoder's map on."""
    x = 2 * _COLUMN
    ups = [
        drawing.box(x, y, f"1{X}1, {X}2 rdtsc", size(shapes[f"agl_head.{name}.up"]), HEAD)
        for name, y in (("height", 0.0), ("magnitude", finest.y))
    ]
    turn = (finest.right[0] + 0.2, finest.y)
    drawing.arrow(finest.right, ups[1].left)
    drawing.line(turn, (turn[0], ups[0].y))
    drawing.arrow((turn[0], ups[0].y), ups[0].left)
    wide = shapes["agl_head.height.conv1"]
    stages = [
        (f"3{X}3", "", size(wide)),
        (f"3{X}3", size((1, *wide[1:])), size(shapes["agl_head.height.conv2"])),
        (f"3{X}3, ReLU", "", size(shapes["agl_head.height.conv3"])),
    ]
    return _branches(drawing, x + _COLUMN, (ups[0], ups[1]), stages)


def _shared_head(drawing: Drawing, finest: Box, shapes: Shapes) -> tuple[Box, Box]:
    """AGLHead: one way up, then two branches."""
    text, last, x = f"1{X}1, {X}2 rdtsc, 3{X}3", finest, 2 * _COLUMN
    for number in (4, 9):  # the activation that ends each of the two stages
        shape = shapes[f"agl_head.upsample.{number}"]
        last_before, last = last, drawing.box(x, finest.y, text, size(shape), HEAD)
        drawing.arrow(last_before.right, last.left)
        x += _COLUMN
    stages = [
        (f"3{X}3", size((1, *shape[1:])), size(shapes["agl_head.height.0"])),
        (f"3{X}3, ReLU", "", size(shapes["agl_head.height.2"])),
    ]
    middle = last.right[0] + 0.2
    rows = (finest.y + _ROW, finest.y)
    drawing.line((middle, rows[1]), (middle, rows[0]))
    starts = tuple(Box(middle, y, width=0.0) for y in rows)
    drawing.line(last.right, starts[1].left)
    return _branches(drawing, x, (starts[0], starts[1]), stages)


def _rest(drawing: Drawing, coarsest: Box, results: tuple[Box, Box], channels: int) -> None:
    """Scale from the two maps, direction from the coarsest encoder map."""
    height, magnitude = results
    scale = drawing.box(
        magnitude.x, magnitude.y - 1.15 * _ROW, "scale, px/m", "Σ hm / (Σ h² + 0.01)", RESULT
    )
    drawing.arrow(magnitude.bottom, scale.top)
    side = height.right[0] + 0.25
    drawing.line(height.right, (side, height.y), (side, scale.y))
    drawing.arrow((side, scale.y), scale.right)
    y = coarsest.y - _ROW
    pool = drawing.box(0, y, "mean over the map", str(channels), HEAD)
    drawing.arrow(coarsest.bottom, pool.top)
    hidden = drawing.box(_COLUMN, y, "linear, SiLU", str(channels), HEAD)
    drawing.arrow(pool.right, hidden.left)
    direction = drawing.box(magnitude.x, y, "direction", "(sin a, cos a)", RESULT)
    drawing.arrow(hidden.right, direction.left, "linear")


def draw(name: str) -> Path:
    """Writes the picture of one published network."""
    model: Any = shipped_model(f"model={name}")
    with torch.device("meta"):
        shapes = module_shapes(model, torch.zeros(1, 3, SIDE_PX, SIDE_PX), torch.zeros(1, 1))
    figure, axes = plt.subplots()
    drawing = Drawing(axes)
    left, right = _pyramid(drawing, model)
    head = _simple_head if "agl_head.height.up" in shapes else _shared_head
    results = head(drawing, right[0], shapes)
    _rest(drawing, left[-1], results, model.encoder.channels[-1])
    x, y = results[0].x, left[-1].y - _ROW
    limits = (-WIDTH / 2 - 0.1, x + WIDTH / 2 + 0.4, y - 0.6 * HEIGHT, max(drawing.tops) + 0.1)
    axes.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axes.set_title(name, fontsize=12, weight="bold", loc="left")
    axes.axis("off")
    figure.set_size_inches(_INCH * (limits[1] - limits[0]), _INCH * (limits[3] - limits[2]))
    path = IMAGES / f"network_{name}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # type: ignore[union-attr]
    plt.rcParams["svg.hashsalt"] = "geopose"  # the same bytes every time
    for network in ("b7_unet", "b6_rdtsc_unet"):
        draw(network)
