"""Pictures of images that are hardly more than a line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopose.output.preview import Pose, PreviewRow, render_preview, save_visualization


@pytest.mark.parametrize("size", [(1, 1280), (4000, 1), (3, 5000), (1, 1), (2, 2)])
def test_a_picture_of_a_thin_image(tmp_path: Path, size: tuple[int, int]) -> None:
    rgb = np.full((*size, 3), 90, np.uint8)
    agl_m = np.full(size, 12.0)
    save_visualization(tmp_path / "a.png", rgb, agl_m, 1.5, 0.4)
    assert min(Image.open(tmp_path / "a.png").size) > 50
    pose = Pose(agl_m, 1.5, 0.4)
    assert min(render_preview([PreviewRow("a", rgb, pose, pose)]).shape[:2]) > 50
