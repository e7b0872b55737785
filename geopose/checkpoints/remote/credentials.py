"""User and password of a URL: kept in this process for the server, and nowhere else.

In: a URL as a user gave it. Out: the URL without them, which is the one that is used from there on.
"""

import base64
from urllib.parse import unquote, urlsplit, urlunsplit

from geopose.errors import InputError

_HEADERS: dict[str, str] = {}  # by URL without credentials


def hide_credentials(entry: str) -> str:
    """A URL without user and password, which are remembered for `authorization`.

    Anything else than a http(s) URL with credentials comes back as it is.

    Raises:
        InputError: a URL that names no server, such as one with a bracket in the wrong place.
    """
    if not entry.lower().startswith(("http:", "https:")):
        return entry
    try:
        parts = urlsplit(entry)
    except ValueError as error:
        raise InputError(f"{entry}: not a possible URL ({error})") from error
    user, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not at:
        return entry
    clean = urlunsplit(parts._replace(netloc=host))
    name, _, password = user.partition(":")
    pair = f"{unquote(name)}:{unquote(password)}".encode()
    _HEADERS[clean] = f"Basic {base64.b64encode(pair).decode()}"
    return clean


def authorization(url: str) -> str | None:
    """The header that goes with a URL that `hide_credentials` returned; None = there is none."""
    return _HEADERS.get(url)
