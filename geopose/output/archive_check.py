"""Checks an archive before it is handed in: a .tar.gz and a data directory in, nothing or an error.

python -m geopose.output.archive check FILE --data-dir DIR
"""

import gzip
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geopose.cli import ArgumentParser
from geopose.data.checks.numbers import HeightCounts, scale_problem, small_scales_problem
from geopose.data.heights import NODATA_CM, read_agl_cm
from geopose.data.image_size import image_size
from geopose.data.layout import ImageRecord, resolve_data_dir
from geopose.data.layouts.splits import CHALLENGE, add_data_options, read_split
from geopose.data.vflow import read_vflow
from geopose.errors import InputError, one_line
from geopose.output.writer import output_names

_NAMED_AT_MOST = 3
_ROOM_BYTES = 1 << 20  # of a height map beside its pixels; and of a flow file
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)


def check_archive(path: Path, records: Sequence[ImageRecord]) -> None:
    """Reads a whole archive as those who score it will.

    Args:
        path: the .tar.gz.
        records: the images of the test split.

    Raises:
        InputError: a file that is missing, there twice or of no image, not of the size of its
            image or not of the right type, a height or a flow that is unknown or cannot be.
    """
    expected = {name: record for record in records for name in output_names(record.rgb.name)}
    _check_packed(path, records)
    seen: set[str] = set()
    counts, tangents = HeightCounts(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, copy in _members(path, expected, seen, Path(folder)):
            record = expected[name]
            try:
                if name.endswith(".tif"):
                    counts.add(_checked_heights(copy, record))
                else:
                    tangents.append(_checked_tangent(copy, record))
            except InputError as error:
                raise InputError(str(error).replace(str(copy), f"{path}: {name}")) from None
            copy.unlink()
    missing = sorted(set(expected) - seen)
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(expected)} files are missing: {_list(missing)}"
        )
    for problem in (small_scales_problem(tangents), counts.problem()):
        if problem:
            raise InputError(f"{path}: {problem}")


def _check_packed(path: Path, records: Sequence[ImageRecord]) -> None:
    """Unpacks to the last byte, whose checksum a reader of the members would not get to see."""
    room = sum(
        3 * _ROOM_BYTES + 4 * height * width
        for height, width in (image_size(record.rgb_file()) for record in records)
    )
    try:
        with gzip.open(path) as packed:
            while chunk := packed.read(_ROOM_BYTES):
                room -= len(chunk)
                if room < 0:
                    raise InputError(f"{path}: it holds far more than the predictions; pack again")
    except _TAR_ERRORS as error:
        raise InputError(
            f"{path}: not a readable .tar.gz ({one_line(error, 120)}); pack it again"
        ) from error


def _members(
    path: Path, expected: dict[str, ImageRecord], seen: set[str], folder: Path
) -> Iterator[tuple[str, Path]]:
    """(name, copy on disk) of one member after the other, in the archive's order."""
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir() and not name.strip("."):
                    continue
                if name not in expected:
                    raise InputError(f"{path}: {name[:200]!r} belongs to no image; remove it")
                if name in seen:
                    raise InputError(f"{path}: {name} is there twice; keep one")
                seen.add(name)
                _check_member(path, member, expected[name])
                content = archive.extractfile(member)
                assert content is not None
                copy = folder / Path(name).with_stem("member").name
                copy.write_bytes(content.read())
                yield name, copy
    except _TAR_ERRORS as error:
        raise InputError(
            f"{path}: not a readable .tar.gz ({one_line(error, 120)}); pack it again"
        ) from error


def _check_member(path: Path, member: tarfile.TarInfo, record: ImageRecord) -> None:
    if not member.isfile():
        raise InputError(f"{path}: {member.name} is no plain file; pack the file itself")
    height, width = image_size(record.rgb_file()) if member.name.endswith(".tif") else (0, 0)
    if member.size > _ROOM_BYTES + 4 * height * width:
        raise InputError(f"{path}: {member.name} has {member.size} bytes, far too many")


def _checked_heights(copy: Path, record: ImageRecord) -> NDArray[np.uint16]:
    agl_cm = read_agl_cm(copy)
    size = image_size(record.rgb_file())
    if agl_cm.shape != size:
        raise InputError(
            f"{copy}: {agl_cm.shape[1]} x {agl_cm.shape[0]} pixels, the image has "
            f"{size[1]} x {size[0]}"
        )
    if unknown := int(np.count_nonzero(agl_cm == NODATA_CM)):
        raise InputError(f"{copy}: {unknown} pixels are no data; predict a height in every pixel")
    return agl_cm


def _checked_tangent(copy: Path, record: ImageRecord) -> float:
    scale_px_per_m, _ = read_vflow(copy)
    if problem := scale_problem(scale_px_per_m, record.gsd_m):
        raise InputError(f"{copy}: {problem}")
    return scale_px_per_m * record.gsd_m


def _list(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = ArgumentParser(
        prog="python -m geopose.output.archive", description="Checks an archive of predictions."
    )
    parser.add_argument("command", choices=("check",), help="read the archive and name what is off")
    parser.add_argument("file", type=Path, metavar="FILE", help="the .tar.gz")
    add_data_options(parser)
    arguments = parser.parse_args(argv)
    records = read_split(
        resolve_data_dir(arguments.data_dir), "test", arguments.layout or CHALLENGE
    )
    if not arguments.file.is_file():
        raise InputError(f"{arguments.file}: no such file")
    check_archive(arguments.file, records)
    sys.stdout.write(f"{arguments.file}: sound, {len(records)} images\n")
