"""Which city the images of a folder of truth belong to: scores are means over cities.

In: names of images and where their tables may be. Out: the city of each. Training takes cities from
`metadata.csv`; the beginning of a file name says the same only where files are named so.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from geopose.data.layout import agl_name
from geopose.data.layouts.challenge import METADATA_CSV, SPLIT_CSV, city_names, image_names
from geopose.errors import InputError

logger = logging.getLogger(__name__)

_AGL = "_AGL.tif"


def cities_of(
    image_ids: Sequence[str], truth: Path, data_dir: Path | None
) -> tuple[dict[str, str], str]:
    """The city of every image, and where that is from, for the user.

    Args:
        image_ids: `CITY_xxxxxx` of CITY_xxxxxx_AGL.tif.
        truth: folder with the true files; tables are looked for in it and in the one above.
        data_dir: given by the user, and then its tables must know every image.

    Raises:
        InputError: tables that cannot be read or know only some of the images; without tables, a
            name that begins with no city.
    """
    if data_dir is not None:
        return _complete(_from_tables(data_dir), image_ids, data_dir / METADATA_CSV)
    for folder in (truth, truth.absolute().parent):
        if (folder / METADATA_CSV).is_file():
            known = _from_tables(folder)
            if any(image_id in known for image_id in image_ids):
                return _complete(known, image_ids, folder / METADATA_CSV)
            logger.warning("%s knows none of these images", folder / METADATA_CSV)
    nameless = sorted(image_id for image_id in image_ids if not city_of(image_id))
    if nameless:
        raise InputError(f"TRUTH {truth}: no city before the underscore in {nameless[0]}{_AGL}")
    source = (
        "the file names up to the first underscore (--data-dir DIR takes them from its "
        f"{METADATA_CSV}, as training does)"
    )
    return {image_id: city_of(image_id) for image_id in image_ids}, source


def city_of(image_id: str) -> str:
    """The file name up to its first underscore."""
    return image_id.split("_", 1)[0]


def _complete(
    known: dict[str, str], image_ids: Sequence[str], table: Path
) -> tuple[dict[str, str], str]:
    missing = [image_id for image_id in image_ids if image_id not in known]
    if missing:
        raise InputError(
            f"{table}: {len(missing)} of {len(image_ids)} images of TRUTH are not in it, the first "
            f"is {missing[0]}; add them, or give the --data-dir that knows them"
        )
    return {image_id: known[image_id] for image_id in image_ids}, str(table)


def _from_tables(folder: Path) -> dict[str, str]:
    """City by the name of the image's files; by its id too, where no table lists its files."""
    cities = city_names(folder / METADATA_CSV)
    known = {agl_name(image_id).removesuffix(_AGL): city for image_id, city in cities.items()}
    for table in SPLIT_CSV.values():
        if (folder / table).is_file():
            named = image_names(folder / table)
            known |= {
                agl_name(rgb).removesuffix(_AGL): cities[image_id]
                for image_id, rgb in named.items()
                if image_id in cities
            }
    return known
