"""When an image was taken, as its file states it.

In: a path. Out: a time in UTC, or None. TIFF's own DATETIME is not believed: for some vendors it is
when the file was made.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

from geopose.imagery.place.gdal import find_rasterio, quiet

# (GDAL's domain, name, what it looks like): of satellites' IMD and other side files, and NITF 2.1.
_TAGS = (
    ("IMAGERY", "ACQUISITIONDATETIME", r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)"),
    (None, "NITF_IDATIM", r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)"),
)


def acquisition_time(path: Path) -> datetime | None:
    """The time of an image's acquisition in UTC; None = its file does not tell a whole one."""
    rasterio = find_rasterio()
    if rasterio is None:
        return None
    try:
        with quiet(), rasterio.open(path) as dataset:
            texts = [dataset.tags(ns=domain).get(name, "") for domain, name, _ in _TAGS]
    except (rasterio.errors.RasterioError, OSError):
        return None
    found = (_time(text, tag[2]) for text, tag in zip(texts, _TAGS, strict=True))
    return next((time for time in found if time is not None), None)


def _time(text: str, pattern: str) -> datetime | None:
    match = re.match(pattern, text.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # such as month 00
        return None
