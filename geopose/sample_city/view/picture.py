"""One picture per synthetic city: RGB, exact height with a colour bar, exact flow as arrows.

In: city and seed. Out: a JPEG for the documentation.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.errors import InputError
from geopose.files.atomic import atomic_path
from geopose.geometry import flow_px
from geopose.sample_city.view.render import Scene, render_scene
from geopose.sample_city.world.cities import EASY

SIZE_PX = 448
_MARGIN_PX, _HEADER_PX, _BAR_PX = 8, 26, 70
_MAX_BYTES = 240_000
_ARROW_STEP_PX = 32
_INK = (30, 30, 30)
_NO_DATA = (200, 200, 200)
# scenes of seed 0 that show several kinds of block; cities not listed show scene 0
_SHOWN_INDEX = {"SYA": 5, "SYB": 1, "SYC": 4, "SYD": 5}


def write_picture(
    folder: Path | str, city: str, seed: int, index: int | None = None, preset: str = EASY
) -> Path:
    """Renders a scene and writes `folder/sample_city_<CITY>.jpg`.

    Args:
        folder: made if missing.
        city: synthetic city.
        seed: as in `render_scene`.
        index: which scene of the city; None: one that was chosen for the documentation.
        preset: as in `render_scene`.

    Returns:
        The path of the picture.

    Raises:
        InputError: unknown city or preset, negative seed, or `folder` cannot be a directory.
        RunError: the file cannot be written.
    """
    if index is None:
        index = _SHOWN_INDEX.get(city, 0)
    scene = render_scene(city, index, SIZE_PX, seed, preset)
    picture = draw_scene(scene)
    path = Path(folder) / f"sample_city_{city}.jpg"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write pictures to {folder}: {error.strerror}") from error
    data = _jpeg(picture)
    with atomic_path(path) as partial:
        partial.write_bytes(data)
    return path


def draw_scene(scene: Scene) -> NDArray[np.uint8]:
    """The three panels side by side, RGB uint8."""
    height, width = scene.agl_m.shape
    top_m = max(float(np.ceil(scene.agl_m.max() / 10.0) * 10.0), 10.0)
    panels = [scene.rgb, _height_map(scene, top_m), _arrows(scene)]
    angle_deg = np.degrees(scene.angle_rad)
    titles = [
        f"{scene.city} (synthetic), {scene.gsd_m:.2f} m/px",
        "height of what is seen, exact",
        f"flow to the ground, {scene.scale_px_per_m:.2f} px/m, {angle_deg:.0f} deg",
    ]
    page = np.full(
        (height + _HEADER_PX + _MARGIN_PX, 3 * width + 4 * _MARGIN_PX + _BAR_PX, 3), 255, np.uint8
    )
    left = _MARGIN_PX
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        page[_HEADER_PX : _HEADER_PX + height, left : left + width] = panel
        _text(page, title, (left, 18), 0.5)
        left += width + _MARGIN_PX
        if number == 1:
            _colour_bar(page, left, height, top_m)
            left += _BAR_PX
    return page


def _height_map(scene: Scene, top_m: float) -> NDArray[np.uint8]:
    image = _colours(scene.agl_m / top_m)
    image[scene.nodata] = _NO_DATA
    return image


def _colours(share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Viridis, RGB, of shares 0..1."""
    levels = np.clip(share * 255.0, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _colour_bar(page: NDArray[np.uint8], left: int, height: int, top_m: float) -> None:
    """Bar in metres beside the height map; the grey square is no data."""
    bar = _HEADER_PX + 4, _HEADER_PX + height - 40
    ramp = np.linspace(1.0, 0.0, bar[1] - bar[0])[:, None].repeat(16, axis=1)
    page[bar[0] : bar[1], left : left + 16] = _colours(ramp)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = round(bar[1] - share * (bar[1] - bar[0] - 1)) - 1
        page[y, left + 16 : left + 20] = _INK
        _text(page, f"{share * top_m:g} m", (left + 22, y + 4), 0.36)
    page[bar[1] + 14 : bar[1] + 30, left : left + 16] = _NO_DATA
    _text(page, "no data", (left + 20, bar[1] + 26), 0.34)


def _arrows(scene: Scene) -> NDArray[np.uint8]:
    """Arrows from where a surface is seen to its ground point, on a pale image."""
    image = (255.0 - 0.55 * (255.0 - scene.rgb.astype(np.float32))).astype(np.uint8)
    dx, dy = flow_px(scene.agl_m, scene.scale_px_per_m, scene.angle_rad)
    height, width = scene.agl_m.shape
    for y in range(_ARROW_STEP_PX // 2, height, _ARROW_STEP_PX):
        for x in range(_ARROW_STEP_PX // 2, width, _ARROW_STEP_PX):
            length = float(np.hypot(dx[y, x], dy[y, x]))
            if length < 2.0:
                cv2.circle(image, (x, y), 1, (150, 30, 30), -1, cv2.LINE_AA)
                continue
            tip = (round(x + float(dx[y, x])), round(y + float(dy[y, x])))
            head = min(0.35, 6.0 / length)
            cv2.arrowedLine(image, (x, y), tip, (200, 20, 30), 2, cv2.LINE_AA, 0, head)
    return image


def _text(page: NDArray[np.uint8], text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(page, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Best quality that stays below _MAX_BYTES."""
    data = b""
    for quality in range(92, 40, -4):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        data = cv2.imencode(".jpg", picture[..., ::-1], options)[1].tobytes()
        if len(data) <= _MAX_BYTES:
            break
    return data
