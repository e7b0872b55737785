"""Which products a run makes of its images, and the page of all in the end."""

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from geopose.imagery.map import parse_map
from geopose.products import selection
from geopose.products.page import INDEX, write_page
from geopose.products.predicted import PredictedImage
from geopose.products.selection import parse_products, product_path
from geopose.products.write import ProductOptions, write_products

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProductChoice:
    """Products of every image of a run.

    Attributes:
        wanted: some of `selection.NAMES`.
        options: how they are written.
    """

    wanted: frozenset[str] = selection.ALL
    options: ProductOptions = field(default_factory=ProductOptions)

    @property
    def words(self) -> str:
        """What the files of an image follow from."""
        parts = ["all"] if self.wanted == selection.ALL else sorted(self.wanted)
        parts += ["uint16-cm"] if self.options.uint16_cm else []
        if (layout := self.options.layout) is not None:
            parts.append(f"map {layout.crs} {layout.ground}")
        return ",".join(parts)

    @property
    def wants_uncertainty(self) -> bool:
        """Whether the spread over views and models is of use."""
        return selection.UNCERTAINTY in self.wanted

    def writer(self, folder: Path) -> Callable[[PredictedImage], Sequence[Path]]:
        """What becomes of a finished image."""

        def write(image: PredictedImage) -> Sequence[Path]:
            written = write_products(image, folder, self.wanted, self.options)
            for line in written.warnings[len(image.warnings) :]:
                logger.warning("%s", line)
            return list(written.files.values())

        return write

    def conclude(
        self, folder: Path, done: Sequence[str], failed: Mapping[str, str]
    ) -> tuple[Path, str]:
        """The page of all images, if it is wanted; (what to open, words about it)."""
        count = f"products of {len(done)} image{'' if len(done) == 1 else 's'}"
        if selection.PAGE not in self.wanted or not done:
            return folder, count
        entries = [product_path(folder, name, selection.PAGE) for name in done]
        write_page(entries, folder / INDEX, failed)
        return folder / INDEX, f"{count}, page"


def product_choice(arguments: Namespace) -> ProductChoice:
    """What the options of products and `--ground-height` said.

    Raises:
        InputError: an unknown product or CRS, or a map without what it needs.
    """
    ground = None if arguments.map is None else arguments.ground_height
    options = ProductOptions(arguments.uint16_cm, parse_map(arguments.map, ground))
    return ProductChoice(parse_products(arguments.products), options)
