"""The command rectify.py: one image, or every image of a submission, put on its footprints."""

import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from geopose.cli import ArgumentParser
from geopose.data.layout import agl_name, resolve_data_dir
from geopose.data.layouts.challenge import SPLIT_CSV
from geopose.data.layouts.splits import read_split
from geopose.errors import GeoposeError, InputError, RunError, one_line
from geopose.files.writable import check_folder_target
from geopose.imagery.map import MapLayout, parse_map
from geopose.imagery.products import Products, stem_of, write_products
from geopose.system.progress import progress_bar

logger = logging.getLogger(__name__)

_AGL_SUFFIX, _VFLOW_SUFFIX = "_AGL.tif", "_VFLOW.json"
_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_NAMED_AT_MOST = 3
_ARCHIVE_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error)


def main(argv: Sequence[str] | None = None) -> None:
    """`rectify.py`: writes rectified heights, colours and occlusion, says where."""
    arguments = _parser().parse_args(argv)
    one = arguments.agl is not None
    if one == (arguments.archive is not None):
        raise InputError("give either --agl and --vflow, or --archive (see rectify.py --help)")
    layout = parse_map(arguments.map, arguments.ground_height)
    if one:
        _rectify_one(arguments.agl, arguments.vflow, arguments.rgb, arguments.out, layout)
    else:
        if arguments.vflow is not None or arguments.rgb is not None:
            raise InputError("--vflow and --rgb go with --agl; an archive has its own flow files")
        _rectify_archive(arguments.archive, arguments.data_dir, arguments.out, layout)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rectify.py",
        description="Put leaning surfaces on their footprints: <stem>_AGL_RECTIFIED.tif (metres), "
        "<stem>_RGB_RECTIFIED.tif, <stem>_OCCLUSION.tif (0 seen, 1 hidden, 255 unknown).",
    )
    add = parser.add_argument
    add("--agl", type=Path, metavar="FILE", help="heights: uint16 cm or float32 m")
    add("--vflow", type=Path, metavar="FILE", help="flow of the image, _VFLOW.json")
    add("--rgb", type=Path, metavar="FILE", help="the image, 8-bit RGB")
    add("--archive", type=Path, metavar="FILE", help="a submission: .tar.gz or folder")
    add("--data-dir", type=Path, metavar="DIR", help="where the submission's images are")
    add("--out", type=Path, metavar="DIR", help="folder for the products")
    add("--map", metavar="utm|EPSG:N", help="write <product>_MAP.tif in this system, too")
    add(
        "--ground-height",
        metavar="M|DEM.tif",
        help="with --map, of images placed by RPCs: metres above the ellipsoid",
    )
    return parser


def _rectify_one(
    agl: Path, vflow: Path | None, rgb: Path | None, out: Path | None, layout: MapLayout | None
) -> None:
    if vflow is None:
        raise InputError(f"--vflow is missing: the flow of {agl}, its _VFLOW.json")
    if out is None:
        raise InputError("--out is missing: the folder for the products")
    check_folder_target(out, "--out")
    with _bar(100, "rectify", "%") as advance:
        products = write_products(agl, vflow, rgb, out, lambda share: advance(100 * share))
    maps = [] if layout is None else [layout.warp(path) for path in products.files]
    logger.info("%s", _summary(products))
    for path in (*products.files, *maps):
        logger.info("wrote %s", path)


def _summary(products: Products) -> str:
    seen, hidden, unknown = (f"{100 * share:.1f} %" for share in products.shares)
    return f"{seen} seen, {hidden} hidden, {unknown} unknown"


@contextmanager
def _bar(total: int, title: str, unit: str) -> Iterator[Callable[[float], object]]:
    """Progress of the first process only."""
    disable = os.environ.get("RANK", "0") != "0"
    with progress_bar(total=total, desc=title, unit=unit, disable=disable, leave=False) as bar:
        yield bar.update


@dataclass(frozen=True)
class _Submission:
    """The predictions of a run: a folder, or an archive that was unpacked into one."""

    folder: Path
    stems: list[str]


def _rectify_archive(
    archive: Path, data_dir: Path | None, out: Path | None, layout: MapLayout | None
) -> None:
    """Every image of a submission; one that is broken is named, the others go on."""
    images = _images(resolve_data_dir(data_dir))
    out = out if out is not None else archive.with_name(f"{_plain_name(archive)}_rectified")
    check_folder_target(out, "--out")
    failed: list[str] = []
    with _opened(archive, out) as submission, _bar(len(submission.stems), "rectify", "image") as up:
        for stem in submission.stems:
            try:
                agl = submission.folder / f"{stem}{_AGL_SUFFIX}"
                vflow = submission.folder / f"{stem}{_VFLOW_SUFFIX}"
                products = write_products(agl, vflow, _image_of(stem, images), out)
                if layout is not None:
                    for path in products.files:
                        layout.warp(path)
            except GeoposeError as error:
                failed.append(stem)
                logger.error("%s: not rectified: %s", stem, one_line(error))
            up(1)
        count = len(submission.stems)
    logger.info("wrote the products of %d of %d images to %s", count - len(failed), count, out)
    if failed:
        raise RunError(f"{archive}: {len(failed)} of {count} images not rectified: {_list(failed)}")


def _list(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _plain_name(archive: Path) -> str:
    for suffix in _ARCHIVE_SUFFIXES:
        if archive.name.endswith(suffix):
            return archive.name.removesuffix(suffix)
    return archive.name


def _images(data_dir: Path) -> dict[str, Path]:
    """Images of both splits by what their predictions are called after."""
    images: dict[str, Path] = {}
    splits = [split for split, name in SPLIT_CSV.items() if (data_dir / name).is_file()]
    if not splits:
        raise InputError(f"{data_dir}: holds neither of {', '.join(SPLIT_CSV.values())}")
    for split in splits:
        for record in read_split(data_dir, split):
            images[stem_of(Path(agl_name(record.rgb.name)))] = record.rgb_file()
    return images


def _image_of(stem: str, images: dict[str, Path]) -> Path:
    if stem not in images:
        raise InputError(f"{stem}{_AGL_SUFFIX}: no such image in the data directory's CSV files")
    return images[stem]


@contextmanager
def _opened(archive: Path, out: Path) -> Iterator[_Submission]:
    """The submission's files in a folder, for as long as they are needed."""
    if archive.is_dir():
        yield _submission(archive, archive)
        return
    nearest = out
    while not nearest.exists():  # beside the products: /tmp may be small
        nearest = nearest.parent
    with tempfile.TemporaryDirectory(prefix=".rectify-", dir=nearest) as scratch:
        _unpack(archive, Path(scratch))
        yield _submission(Path(scratch), archive)


def _submission(folder: Path, archive: Path) -> _Submission:
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    stems = sorted(
        {
            name.removesuffix(suffix)
            for suffix in (_AGL_SUFFIX, _VFLOW_SUFFIX)
            for name in names
            if name.endswith(suffix)
        }
    )
    if not stems:
        raise InputError(f"{archive}: holds no *{_AGL_SUFFIX} file; give a submission")
    return _Submission(folder, stems)


def _unpack(archive: Path, folder: Path) -> None:
    """Predictions lie flat in an archive; whatever folder one claims to be in does not count."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                source = tar.extractfile(member) if member.isfile() else None
                if source is not None and name.endswith((_AGL_SUFFIX, _VFLOW_SUFFIX)):
                    with (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
    except _ARCHIVE_ERRORS as error:
        raise InputError(
            f"{archive}: not a whole tar archive ({one_line(error, 120)}); give a submission, "
            ".tar.gz or folder"
        ) from error
