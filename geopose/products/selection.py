"""Which products there are, what their files are called and hold, and which are asked for."""

from dataclasses import dataclass
from pathlib import Path

from geopose.errors import InputError

AGL, VFLOW, MAGNITUDE, UNCERTAINTY = "agl", "vflow", "magnitude", "uncertainty"
RECTIFIED, PREVIEW, STAC, PAGE = "rectified", "preview", "stac", "page"
NAMES = (AGL, VFLOW, MAGNITUDE, UNCERTAINTY, RECTIFIED, PREVIEW, STAC, PAGE)
ALL = frozenset(NAMES)
PAGE_FOLDER = "page"  # beside the products: what the run's page is made of, a file an image

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
MAP = "_map"  # behind a kind: its map
_TIFF_SUFFIX = ".tif"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        product: that asks for it.
        suffix: what follows an image's stem in its name.
        title: for people.
        media_type: of the file.
        roles: of a STAC asset.
        band: data_type, nodata and unit of its pixels, in STAC's words; {} = no raster.
    """

    product: str
    suffix: str
    title: str
    media_type: str
    roles: tuple[str, ...]
    band: dict[str, str | float]

    @property
    def has_map(self) -> bool:
        """Whether it is rectified: only then does a map show every roof in its place."""
        return self.product == RECTIFIED


_METRES: dict[str, str | float] = {"data_type": "float32", "nodata": "nan", "unit": "m"}
KINDS = {
    "agl": Kind(AGL, "_AGL.tif", "Height above ground", COG, ("data",), _METRES),
    "vflow": Kind(VFLOW, "_VFLOW.json", "Vertical flow", "application/json", ("metadata",), {}),
    "magnitude": Kind(
        MAGNITUDE, "_MAGNITUDE.tif", "Length of vertical flow", COG, ("data",),
        {"data_type": "float32", "nodata": "nan", "unit": "pixel"},
    ),
    "uncertainty": Kind(
        UNCERTAINTY, "_UNCERTAINTY.tif", "Spread of the heights over views and models", COG,
        ("data",), _METRES,
    ),
    "agl_rectified": Kind(
        RECTIFIED, "_AGL_RECTIFIED.tif", "Height above ground, on its footprint", COG, ("data",),
        _METRES,
    ),
    "rgb_rectified": Kind(
        RECTIFIED, "_RGB_RECTIFIED.tif", "Image, rectified", COG, ("data", "visual"),
        {"data_type": "uint8"},
    ),
    "occlusion": Kind(
        RECTIFIED, "_OCCLUSION.tif", "Occlusion: 0 seen, 1 hidden, 255 unknown", COG,
        ("data", "metadata"), {"data_type": "uint8", "nodata": 255},
    ),
    "preview": Kind(PREVIEW, "_PREVIEW.png", "Preview", "image/png", ("overview",), {}),
    "stac": Kind(STAC, ".json", "STAC item", "application/geo+json", ("metadata",), {}),
    "page": Kind(PAGE, ".json", "Entry of the page", "application/json", ("metadata",), {}),
}  # fmt: skip


def parse_products(text: str) -> frozenset[str]:
    """Products of an option's comma-separated list.

    Args:
        text: names, in any case; "all" stands for all that an image allows.

    Returns:
        Some of NAMES; ALL for "all".

    Raises:
        InputError: an unknown name, or none.
    """
    names = [name for part in text.split(",") if (name := part.strip().lower())]
    unknown = [name for name in names if name not in ("all", *NAMES)]
    if unknown or not names:
        what = f"{unknown[0][:40]!r} is unknown" if unknown else "it names none"
        raise InputError(f"--products {text[:60]!r}: {what}; expected all or {','.join(NAMES)}")
    return ALL if "all" in names else frozenset(names)


def product_path(out: Path, stem: str, kind: str) -> Path:
    """The file of a kind (a key of KINDS) that belongs to an image."""
    folder = out / PAGE_FOLDER if kind == "page" else out
    return folder / f"{stem}{KINDS[kind].suffix}"


def map_path(product: Path) -> Path:
    """The map of a product."""
    return product.with_name(f"{product.name.removesuffix(_TIFF_SUFFIX)}_MAP{_TIFF_SUFFIX}")


def possible_files(out: Path, stem: str) -> list[Path]:
    """Every file that an image's products can have, whether it is there or not."""
    files = [product_path(out, stem, kind) for kind in KINDS]
    return files + [map_path(product_path(out, stem, k)) for k, v in KINDS.items() if v.has_map]
