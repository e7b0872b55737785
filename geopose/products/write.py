"""All that is asked for of one predicted image, written window by window.

In: a `PredictedImage`. Out: its files, each whole or absent, and what the run has to say of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.errors import GeoposeError, InputError
from geopose.geometry import wrap_angle
from geopose.imagery.map import MapLayout
from geopose.imagery.products import AGL, OCCLUSION, RGB, Rectification, write_rectified
from geopose.imagery.rectify import SEEN, UNKNOWN, Rectified, Window
from geopose.products import selection
from geopose.products.entry import About, write_entry
from geopose.products.item import write_item
from geopose.products.maps import HeightStatistics, Masked, write_maps
from geopose.products.predicted import PredictedImage
from geopose.products.preview import Thumbnails, draw_preview
from geopose.products.selection import possible_files, product_path
from geopose.products.thumbnail import Thumbnail
from geopose.products.vflow import write_flows
from geopose.products.where import ground_height, north_in_image

_SMALL_PX = 1200  # longer side of what pictures are drawn from
_NAMES = {"agl_rectified": AGL, "rgb_rectified": RGB, "occlusion": OCCLUSION}
_LOWEST_TOP_M = 3.0  # of the colour scale: a field is not to look like a town


@dataclass(frozen=True)
class ProductOptions:
    """How products are written.

    Attributes:
        uint16_cm: heights as the archive holds them: whole centimetres, 65535 = no data.
        layout: of maps beside the rectified products; None = no maps.
    """

    uint16_cm: bool = False
    layout: MapLayout | None = None


@dataclass(frozen=True)
class ProductsWritten:
    """What was written for one image.

    Attributes:
        files: by kind (keys of `selection.KINDS`, and "<kind>_map"), in the order of writing.
        warnings: those of the image, and what could not be made of it.
        missing: products that were asked for by name and cannot be made of this image.
        shares: how much of the image is seen, hidden, unknown once rectified; None = it was not.
        statistics: of the heights.
    """

    files: dict[str, Path]
    warnings: tuple[str, ...]
    missing: tuple[str, ...]
    shares: tuple[float, float, float] | None
    statistics: HeightStatistics


@dataclass
class _Work:
    """One image on its way through."""

    image: PredictedImage
    out: Path
    wanted: frozenset[str]
    options: ProductOptions
    tags: dict[str, str]
    progress: Callable[[float], object]
    files: dict[str, Path] = field(default_factory=dict)
    shares: tuple[float, float, float] | None = None

    @property
    def pictured(self) -> bool:
        return bool(self.wanted & {selection.PREVIEW, selection.PAGE})

    @property
    def rectified(self) -> bool:
        return self.pictured or selection.RECTIFIED in self.wanted

    @property
    def ground_m(self) -> float:
        layout = self.options.layout
        given = None if layout is None else layout.ground
        return ground_height(self.image.georeference, given)

    def path(self, kind: str) -> Path:
        self.files[kind] = product_path(self.out, self.image.stem, kind)
        return self.files[kind]


def write_products(
    image: PredictedImage,
    out: Path,
    wanted: frozenset[str] = selection.ALL,
    options: ProductOptions | None = None,
    progress: Callable[[float], object] | None = None,
) -> ProductsWritten:
    """Writes products of an image into a folder; memory does not grow with the image.

    Args:
        image: what was predicted.
        out: folder, made if missing.
        wanted: some of `selection.NAMES`; ALL = all that this image allows.
        options: how.
        progress: called now and then with the share of the work that was done since.

    Raises:
        InputError: heights that are infinite; a map of an image without a place, or without
            ground height where RPCs need one.
        StorageError: heights or a flow that the files cannot hold.
        RunError: a file cannot be written. In all cases none of the image's products is left, of
            earlier runs neither, so that nobody takes them for this one's.
    """
    options = options or ProductOptions()
    missing: tuple[str, ...] = ()
    warnings = image.warnings
    if image.uncertainty_m is None and selection.UNCERTAINTY in wanted:
        if wanted != selection.ALL:
            missing = (selection.UNCERTAINTY,)
            warnings += (
                f"{image.source.name}: no uncertainty: there was one view of one model, and it is "
                "the spread over several; predict with views (tta) or several models",
            )
        wanted -= {selection.UNCERTAINTY}
    image = replace(image, warnings=warnings)
    work = _Work(image, out, wanted, options, _tags(image), progress or (lambda _share: None))
    try:
        out.mkdir(parents=True, exist_ok=True)
        statistics = _write(work)
    except GeoposeError:
        discard_products(out, image.stem)
        raise
    except OSError as error:
        discard_products(out, image.stem)
        raise InputError(f"cannot write to {out}: {error.strerror}; check the folder") from error
    return ProductsWritten(work.files, warnings, missing, work.shares, statistics)


def discard_products(out: Path, stem: str) -> None:
    """Removes all products of an image, if there are any."""
    for path in possible_files(out, stem):
        path.unlink(missing_ok=True)


def _tags(image: PredictedImage) -> dict[str, str]:
    """Provenance, as every GeoTIFF carries it."""
    used = image.flows.used
    facts = {
        "".join(c if c.isalnum() else "_" for c in k).upper(): v for k, v in image.facts.items()
    }
    return {
        "GEOPOSE_SOURCE": image.source.name,
        "GEOPOSE_FLOW_SOURCE": image.flows.source,
        "GEOPOSE_SCALE_PX_PER_M": f"{used.scale_px_per_m:.9g}",
        "GEOPOSE_ANGLE_RAD": f"{wrap_angle(used.angle_rad):.9g}",
        "GEOPOSE_GSD_M": f"{image.gsd_m:.9g}",
        **{f"GEOPOSE_{_tag_name(key)}": str(value) for key, value in image.facts.items()},
    }


def _tag_name(fact: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in fact).upper()


def _write(work: _Work) -> HeightStatistics:
    image, wanted = work.image, work.wanted
    maps = tuple(k for k in ("agl", "magnitude", "uncertainty") if k in wanted)
    passes = 2 if work.rectified else 1
    size = image.shape[0] * image.shape[1] * passes
    small = Thumbnail(image.shape, _SMALL_PX)
    colours = Thumbnail(image.shape, _SMALL_PX, 3)

    def each(window: Window, agl_m: NDArray[np.float32]) -> None:
        if work.pictured:
            small.add(window, agl_m, ~np.isnan(agl_m))
            colours.add(window, image.rgb[window], image.valid[window])
        work.progress(agl_m.size / size)

    written = write_maps(image, work.out, maps, work.tags, work.options.uint16_cm, each)
    work.files.update(written.files)
    if selection.VFLOW in wanted:
        write_flows(work.path("vflow"), image.flows)
    rectified, known = Thumbnail(image.shape, _SMALL_PX, 3), Thumbnail(image.shape, _SMALL_PX)
    if work.rectified:
        _rectify(work, size, rectified, known)
        _write_maps_of(work)
    if selection.PREVIEW in wanted:
        pictures = _pictures(image, small, colours, rectified, known)
        _preview(work, pictures, written.statistics)
    if selection.STAC in wanted:
        path = product_path(work.out, image.stem, "stac")
        write_item(path, image, work.files, written.statistics, work.shares, work.ground_m)
        work.files["stac"] = path
    if selection.PAGE in wanted:
        pictures = _pictures(image, small, colours, rectified, known)
        path = product_path(work.out, image.stem, "page")
        about = About(image, written.statistics, work.shares, work.files)
        write_entry(path, about, pictures, nice_top(written.statistics))
        work.files["page"] = path
    return written.statistics


def _rectify(work: _Work, size: int, colours: Thumbnail, known: Thumbnail) -> None:
    """Rectifies the image: into files if they are wanted, and into small pictures."""
    image = work.image

    def each(window: Window, part: Rectified) -> None:
        if work.pictured and part.rgb is not None:
            colours.add(window, part.rgb, part.occlusion == SEEN)
            known.add(window, part.occlusion, part.occlusion != UNKNOWN)
        work.progress(part.occlusion.size / size)

    rectification = Rectification(
        Masked(image.agl_m, image.valid), image.rgb, image.flows.used.scale_px_per_m,
        image.flows.used.angle_rad, image.georeference, work.tags,
    )  # fmt: skip
    names = tuple(_NAMES.values()) if selection.RECTIFIED in work.wanted else ()
    done = write_rectified(rectification, image.stem, work.out, names, each)
    work.files.update(zip(_NAMES, done.files, strict=False))
    work.shares = done.shares


def _write_maps_of(work: _Work) -> None:
    layout = work.options.layout
    for kind in _NAMES if layout is not None and selection.RECTIFIED in work.wanted else ():
        work.files[f"{kind}{selection.MAP}"] = layout.warp(work.files[kind], work.tags)  # type: ignore[union-attr]


def _pictures(
    image: PredictedImage,
    small: Thumbnail,
    colours: Thumbnail,
    rectified: Thumbnail,
    known: Thumbnail,
) -> Thumbnails:
    return Thumbnails(
        colours.picture(), rectified.picture(), small.mean()[0][..., 0], known.mean()[1] > 0.5,
        image.gsd_m * image.shape[1] / small.shape[1],
    )  # fmt: skip


def _preview(work: _Work, pictures: Thumbnails, statistics: HeightStatistics) -> None:
    image = work.image
    model = image.facts.get("model", "")
    note = f"{image.shape[1]} x {image.shape[0]} px, {image.gsd_m:.3g} m/px"
    draw_preview(
        work.path("preview"), pictures, image.stem, f"{note}, {model}" if model else note,
        image.flows.used, image.flows.source, image.gsd_m, nice_top(statistics),
        north_in_image(image, work.ground_m),
    )  # fmt: skip


def nice_top(statistics: HeightStatistics) -> float:
    """Upper end of the colour scale: nearly the highest, so that one mast does not darken all."""
    return max(_LOWEST_TOP_M, float(np.ceil(statistics.high_m or 0.0)))
