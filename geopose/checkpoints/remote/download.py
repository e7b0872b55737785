"""One file over HTTP: an URL in, the whole file out; resumed, retried and measured.

What has arrived lies in `part`, and beside it a note of which version of the file that is, so that
another attempt, or another process later, can go on from there.
"""

import http.client
import json
import logging
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from geopose.checkpoints.remote.credentials import authorization
from geopose.errors import InputError, RunError
from geopose.files.atomic import atomic_path
from geopose.system.progress import progress_bar

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
PROGRESS_BYTES = 1 << 20  # what an attempt must add to what is there to start the count anew
LONGEST_WAIT_S = 60.0  # whatever a server asks for
SURPLUS_WAIT_S = 1.0
_TRY_LATER = {408, 425, 429}
_USER_AGENT = "geopose (checkpoint download)"


@dataclass(frozen=True)
class Patience:
    """How long a server may be silent, and how long to wait before each further attempt."""

    timeout_s: float = 30.0
    delays_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)


class Unreachable(InputError):
    """No server answered at all: most likely there is no network."""


@dataclass(frozen=True)
class _Version:
    """What a server says about the file that it sends; None = not said."""

    url: str
    etag: str | None
    last_modified: str | None
    length: int | None

    def is_same(self, other: "_Version") -> bool:
        """Whether parts of both may be put together: nothing that both say may differ."""
        pairs = ((self.etag, other.etag), (self.last_modified, other.last_modified))
        agrees = all(a is None or b is None or a == b for a, b in pairs)
        return agrees and self.url == other.url and self.length == other.length


class _Temporary(Exception):
    """An attempt broke off in a way that another one may mend."""

    def __init__(self, problem: object, wait_s: float = 0.0, answered: bool = True) -> None:
        super().__init__(str(problem) or type(problem).__name__)
        self.wait_s = wait_s
        self.answered = answered


def download(url: str, part: Path, patience: Patience, title: str) -> None:
    """Fills `part` with the file at `url`, going on from what earlier attempts left there.

    Args:
        url: http or https.
        part: where to write; left there, to be resumed, when the attempts come to nothing.
        patience: limits of waiting; attempts that bring the file on do not count.
        title: of the progress bar.

    Raises:
        InputError: the server refuses (such as 404), or sends something that is not the file.
        Unreachable: no server answered.
        RunError: broken off again and again, or not the promised number of bytes.
    """
    failures, furthest, answered = 0, _size(part), False
    while True:
        try:
            _transfer(url, part, patience.timeout_s, title)
            return
        except _Temporary as problem:
            answered = answered or problem.answered
            if _size(part) >= furthest + PROGRESS_BYTES:
                failures, furthest = 0, _size(part)
            failures += 1
            # Without a network there is nothing to wait for: two more attempts, quickly.
            delays = patience.delays_s if answered else patience.delays_s[:2]
            if failures > len(delays):
                raise _given_up(url, problem, failures, answered) from problem
            wait = max(delays[failures - 1], min(problem.wait_s, LONGEST_WAIT_S))
            logger.info("%s: %s; trying again in %.0f s", title, problem, wait)
        time.sleep(wait)


def discard_part(part: Path) -> None:
    """Removes what an attempt left, and the note beside it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _given_up(url: str, problem: _Temporary, attempts: int, answered: bool) -> Exception:
    if not answered:
        return Unreachable(f"{url} cannot be reached ({problem})")
    return RunError(f"{url}: gave up after {attempts} attempts ({problem}); run it again to go on")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _noted_version(part: Path) -> _Version | None:
    try:
        return _Version(**json.loads(_note(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # without it the part is worth nothing


def _transfer(url: str, part: Path, timeout_s: float, title: str) -> None:
    """One attempt; _Temporary if another one may help."""
    noted = _noted_version(part)
    start = _size(part) if noted and noted.url == url else 0
    if noted and noted.length is not None and start:
        start = min(start, noted.length - 1)  # ask for at least one byte: none is an error
    with _answer(url, start, timeout_s) as response:
        if response is not None:
            version = _version(url, response)
            first = _first_byte(response)
            goes_on = noted is not None and noted.is_same(version) and first == start
            if first == 0 or goes_on:
                _check_kind(url, response)
                _check_space(part, (version.length or 0) - first)
                _receive(response, version, part, first, title)
                return
    if not start:
        raise RunError(f"{url}: the server sends a part of the file where the whole was asked for")
    discard_part(part)  # the file has changed, or the server cannot go on: from the start, then
    _transfer(url, part, timeout_s, title)


@contextmanager
def _answer(url: str, start: int, timeout_s: float) -> Iterator[http.client.HTTPResponse | None]:
    """The server's answer to a request from byte `start`; None = it cannot go on from there."""
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    if (credentials := authorization(url)) is not None:
        # Not for whomever the server sends us on to.
        request.add_unredirected_header("Authorization", credentials)
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            yield None
            return
        if error.code >= 500 or error.code in _TRY_LATER:
            said = error.headers.get("Retry-After", "")
            raise _Temporary(error, float(said) if said.isdecimal() else 0.0) from error
        raise InputError(f"{url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise Unreachable(f"{url} cannot be reached (no answer in {timeout_s:g} s)") from error
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise _Temporary(reason, answered=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Temporary(_reason(error)) from error
    except ValueError as error:
        raise InputError(f"{url}: not a possible URL ({error})") from error
    with response:
        yield response


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server went silent"
    return f"the connection broke ({error or type(error).__name__})"


def _version(url: str, response: http.client.HTTPResponse) -> _Version:
    """The file as the headers of an answer describe it."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() and not response.chunked else None
    if response.status == http.client.PARTIAL_CONTENT:
        found = _content_range(response)
        total = int(found.group(3)) if found else None
    return _Version(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), total)


def _content_range(response: http.client.HTTPResponse) -> re.Match[str] | None:
    header = response.headers.get("Content-Range", "")
    return re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", header.strip())


def _first_byte(response: http.client.HTTPResponse) -> int:
    """Where in the file the body of an answer begins; -1 = a part, but not said which."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    found = _content_range(response)
    return int(found.group(1)) if found else -1


def _check_kind(url: str, response: http.client.HTTPResponse) -> None:
    """Refuses what cannot be a checkpoint as it lies on the server."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise InputError(f"{url}: the server sends a web page, not a file; check the address")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise InputError(f"{url}: the server sends the file compressed ({encoding}) unasked")


def _check_space(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise RunError(
            f"{part.parent}: {wanted / 1e6:.0f} MB to download, {free / 1e6:.0f} MB free; make room"
        )


def _receive(
    response: http.client.HTTPResponse, version: _Version, part: Path, start: int, title: str
) -> None:
    """Writes the body behind the first `start` bytes of `part` and counts it."""
    received, expected = start, version.length
    if not start:
        discard_part(part)
    with atomic_path(_note(part)) as note:
        note.write_text(json.dumps(asdict(version)))
    with (
        progress_bar(
            desc=title, total=expected, initial=start, leave=False,
            unit="B", unit_scale=True, unit_divisor=1024,
        ) as bar,
        part.open("r+b" if start else "wb") as file,
    ):  # fmt: skip
        file.seek(start)
        file.truncate()
        for chunk in _chunks(response, None if expected is None else expected - start):
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if expected is None or received == expected:
        return
    if received > expected:
        discard_part(part)
        raise RunError(f"{version.url}: the server promised {expected} bytes and sends more")
    raise _Temporary(f"the connection ended after {received} of {expected} bytes")


def _chunks(response: http.client.HTTPResponse, promised: int | None) -> Iterator[bytes]:
    """The body in pieces; at most one piece more than was promised."""
    if promised is not None:
        response.length = None  # else what a server sends beyond its promise stays unseen
    try:
        while promised is None or promised > 0:
            chunk = response.read1(CHUNK_BYTES)
            if not chunk:
                return
            if promised is not None:
                promised -= len(chunk)
            yield chunk
        yield _surplus(response)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Temporary(_reason(error)) from error


def _surplus(response: http.client.HTTPResponse) -> bytes:
    """What follows the promised bytes: nothing, from a server that is honest."""
    connection = getattr(getattr(response.fp, "raw", None), "_sock", None)
    if isinstance(connection, socket.socket):
        connection.settimeout(SURPLUS_WAIT_S)  # it may keep the connection open
    try:
        return response.read1(1)
    except (OSError, http.client.HTTPException):
        return b""
