"""Images of three cities of unequal size."""

from pathlib import Path

import pytest

from geopose.data.layout import ImageRecord
from geopose.data.layouts.splits import read_split
from tests.tiny_data import write_data_dir

CITIES = ["AAA"] * 7 + ["BBB"] * 2 + ["CCC"] * 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of three cities."""
    root = tmp_path_factory.mktemp("cities") / "data"
    return write_data_dir(root, CITIES, (72, 56), ".png")


@pytest.fixture(scope="module")
def records(data: Path) -> list[ImageRecord]:
    return read_split(data, "train")
