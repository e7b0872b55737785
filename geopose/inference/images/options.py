"""The options of predict.py: words in, arguments out."""

from pathlib import Path

from geopose.cli import ArgumentParser, positive_int
from geopose.products import selection
from geopose.words import (
    AUTO,
    DEFAULT,
    FLOW_CHOICES,
    MODEL_NAMES,
    PRECISIONS,
    TTA_NAMES,
)

_TILE_PX = 1024


def build_parser(kind: type[ArgumentParser] = ArgumentParser) -> ArgumentParser:
    """The options of the command.

    Args:
        kind: says what becomes of wrong ones.
    """
    parser = kind(
        prog="predict.py",
        description="Predict heights above ground and vertical flow of any image, and write "
        "products that open on the map: heights, flow, rectified heights and image, a preview, a "
        "page (docs/predict.md).",
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    add("--model", metavar="M", help=f"{', '.join(MODEL_NAMES)}, an inference YAML, a checkpoint "
        f"or its URL (default: {DEFAULT} if it can be had)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the products")
    image = parser.add_argument_group("the images")
    add = image.add_argument
    add("--gsd", type=float, metavar="M", help="metres per pixel, where the file does not say")
    add("--native-gsd", action="store_true", help="never resample to what the models know")
    add("--bands", metavar="R,G,B", help="band numbers from 1 (default: by the file)")
    add("--stretch", default=AUTO, metavar="S", help="to 8 bits: auto (8 bits as stored, else "
        "1,99), none, LOW,HIGH percentiles of the whole image, or LOW:HIGH values")  # fmt: skip
    add("--nodata", type=float, metavar="V", help="value that means no data, beside what the file "
        "says")  # fmt: skip
    add("--sensor", metavar="AZIMUTH,INCIDENCE", help="degrees: the sensor as seen from the "
        "ground, clockwise from north, and from the vertical; of images on the map")  # fmt: skip
    add("--ground-height", metavar="M|DEM.tif", help="of images with RPCs: metres above the "
        "ellipsoid")  # fmt: skip
    how = parser.add_argument_group("prediction")
    add = how.add_argument
    add("--flow", choices=FLOW_CHOICES, default=AUTO, help="which flow products go by: auto takes "
        "the sensor's if it is known, else the model's")  # fmt: skip
    add("--local-flow", action="store_true", help="also write the flow of each tile")
    add("--tile", type=positive_int, default=_TILE_PX, metavar="PX", help="side of a tile "
        f"(default: {_TILE_PX})")  # fmt: skip
    add("--overlap", type=positive_int, metavar="PX", help="of tiles (default: a quarter)")
    views = ", ".join("null" if name is None else name for name in TTA_NAMES)
    add("--tta", metavar="VIEWS", help=f"{views} (default: as the model's config)")
    add("--precision", choices=PRECISIONS, help="default: as the model's config")
    add("--workers", type=int, metavar="N", help="processes that read images")
    add("--nproc", type=int, metavar="N", help="processes that predict (default: one for each "
        "visible GPU, else one)")  # fmt: skip
    add("--force", action="store_true", help="predict again what is finished")
    add("--dry-run", action="store_true", help="say what would be done, and write nothing")
    _add_product_options(parser)
    return parser


def _add_product_options(parser: ArgumentParser) -> None:
    """`--products` and what goes with it."""
    add = parser.add_argument_group("products").add_argument
    add("--products", default="all", metavar="LIST", help=f"of {','.join(selection.NAMES)}, or "
        "all that an image allows (default)")  # fmt: skip
    add("--uint16-cm", action="store_true", help="heights as whole centimetres, 65535 = no data, "
        "as the challenge's archive holds them (default: float32 metres)")  # fmt: skip
    add("--map", metavar="utm|EPSG:N", help="write <rectified product>_MAP.tif in this system, too")
