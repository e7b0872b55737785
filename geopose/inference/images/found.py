"""Which images a user means: files, folders and patterns in, one name for each image out."""

import glob
from collections.abc import Sequence
from pathlib import Path

from geopose.errors import InputError

SUFFIXES = (
    ".tif", ".tiff", ".ntf", ".nitf", ".nsf", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".vrt",
    ".img", ".til",
)  # fmt: skip
_MAGIC = frozenset("*?[")


def find_images(arguments: Sequence[str]) -> dict[str, Path]:
    """Images by the name of their products: the file's name without suffix and `_RGB`.

    Args:
        arguments: a file is taken whatever it is called; of a folder the images in it, by their
            suffixes; a pattern such as "*.tif" is looked up where the shell has not.

    Raises:
        InputError: nothing is there, or two images would have products of the same name.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        for path in _files(argument):
            name = path.stem.removesuffix("_RGB")
            if name in found and found[name].resolve() != path.resolve():
                raise InputError(
                    f"{found[name]} and {path}: products of both would be called {name}_AGL.tif; "
                    "run them into different folders, or rename one"
                )
            found[name] = path
    return found


def _files(argument: str) -> list[Path]:
    path = Path(argument)
    try:
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if _is_image(p)]
            if not inside:
                raise InputError(f"{path}: no image in this folder ({', '.join(SUFFIXES)})")
            return inside
        if path.exists():
            return [path]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if _MAGIC & set(argument):
        matching = [Path(p) for p in sorted(glob.glob(argument, recursive=True))]
        files = [p for p in matching if p.is_file()]
        if files:
            return files
        raise InputError(f"{argument}: no file fits this pattern")
    raise InputError(f"{path}: no such image or folder")


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
