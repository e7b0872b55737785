"""Where the file of a model entry lies: a path as given, or the cache, which it is fetched into.

Beside a fetched `NAME` lies `NAME.sha256`, as sha256sum writes it, with the URL as a comment.
"""

import fcntl
import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlparse

import torch

from geopose.checkpoints.formats.zip_format import check_zip, is_zip
from geopose.checkpoints.remote.credentials import hide_credentials
from geopose.checkpoints.remote.download import Patience, Unreachable, discard_part, download
from geopose.errors import InputError, RunError, one_line
from geopose.files.atomic import atomic_path
from geopose.files.kinds import foreign_kind
from geopose.words import DEMO

logger = logging.getLogger(__name__)

_SHIPPED = {DEMO: Path(__file__).resolve().parents[2] / "demo" / "demo.pth"}
_NAMESAKES: set[Path] = set()  # of shipped files, so that each is spoken of once


@dataclass(frozen=True)
class Source:
    """One checkpoint file as a config names it.

    Attributes:
        entry: a path (relative ones count from the working directory), an http(s) URL (user and
            password are taken out of it), or `demo`: the network that comes with the package,
            whatever lies in the working directory under that name (`./demo` reaches it).
        sha256: the hash that the file must have, 64 lower-case hex digits; None = any.
    """

    entry: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entry", hide_credentials(self.entry))

    @property
    def path(self) -> Path:
        """Where the file is, or will be when it is fetched.

        Raises:
            InputError: a URL without a file name.
        """
        if self.entry in _SHIPPED:
            return _SHIPPED[self.entry]
        # Of a user who is not known here, `~name` is a name like any other.
        local = Path(os.path.expanduser(self.entry))
        return cached_path(self.entry) if is_url(self.entry) else local


def checkpoint_cache() -> Path:
    """Folder of fetched checkpoints: $GEOPOSE_CACHE, else torch hub's."""
    cache = os.environ.get("GEOPOSE_CACHE")
    return Path(cache).expanduser() if cache else Path(torch.hub.get_dir()) / "checkpoints"


def is_url(entry: str) -> bool:
    """Whether a model entry names a file on a server."""
    return entry.lower().startswith(("http://", "https://"))


def cached_path(url: str) -> Path:
    """Where the cache keeps, or will keep, the file of a URL.

    That is the URL's file name, unless the file of this name came from another URL: then a name
    with a few digits more, so that two files are never mistaken for each other.
    """
    path = checkpoint_cache() / _file_name(url)
    origin = _recorded(path)[1]
    if origin in (None, _identity(url)) or not path.is_file():
        return path
    digits = hashlib.sha256(_identity(url).encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{digits}{path.suffix}")


def speak_of_namesake(name: str) -> None:
    """A warning, once, if something lies here under a name that is taken for a shipped one."""
    here = Path(name).absolute()
    if here.exists() and here not in _NAMESAKES:
        _NAMESAKES.add(here)
        logger.warning(
            "%s: taken as the shipped model of this name, not as what is here under it; "
            "for that give ./%s", name, name,
        )  # fmt: skip


def fetch(source: Source) -> Path:
    """The local file of one model entry; see `fetch_all`."""
    return fetch_all([source])[0]


def fetch_all(sources: Sequence[Source], patience: Patience | None = None) -> list[Path]:
    """The local files of model entries: downloaded if not there, checked if a hash is given.

    Safe to call from several processes at once: one downloads, the others wait for it. What is
    there already is checked before anything is downloaded.

    Args:
        sources: what configs say, in any order, repeated or not.
        patience: limits of waiting for a server.

    Returns:
        One path for each source.

    Raises:
        InputError: no such file, another hash than wanted, or the server does not have it; without
            a network it says which files to put where.
        RunError: the download broke off again and again, or cannot be written.
    """
    unique = list(dict.fromkeys(sources))
    missing = [s for s in unique if is_url(s.entry) and not s.path.is_file()]
    paths = {source: _checked(source) for source in unique if source not in missing}
    for number, source in enumerate(missing, start=1):
        count = f" ({number} of {len(missing)})" if len(missing) > 1 else ""
        title = f"{_file_name(source.entry)}{count}"
        try:
            paths[source] = _fetch_alone(source, patience or Patience(), title)
        except Unreachable as error:
            wanted = dict.fromkeys(s.entry for s in missing if not s.path.is_file())
            raise InputError(
                f"{error}; on another machine download {', '.join(wanted)} and put "
                f"{'it' if len(wanted) == 1 else 'them'} into {checkpoint_cache()}"
            ) from error
    _check_not_mixed(paths)
    return [paths[source] for source in sources]


def _checked(source: Source) -> Path:
    """The path of a file that must be there; InputError if it is not, or not the wanted one."""
    path = source.path
    if source.entry in _SHIPPED:
        speak_of_namesake(source.entry)
    if not path.is_file():
        raise InputError(f"{source.entry}: no such checkpoint file (looked from {Path.cwd()})")
    if source.sha256 is not None:
        digest = file_sha256(path)
        if digest != source.sha256:
            remedy = "remove it to fetch it again" if is_url(source.entry) else "get the right file"
            raise InputError(
                f"{path}: its sha256 is {digest}, but {source.sha256} is wanted; {remedy}, or "
                "mend the hash"
            )
    return path


def _check_not_mixed(paths: dict[Source, Path]) -> None:
    """A file put into the cache by hand cannot stand for two different URLs."""
    origins: dict[Path, str] = {}
    for source, path in paths.items():
        if is_url(source.entry):
            known = origins.setdefault(path, source.entry)
            if _identity(known) != _identity(source.entry):
                raise InputError(
                    f"{path}: is it the file of {known} or of {source.entry}? "
                    "Give their paths instead of URLs, or remove it to fetch both"
                )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(url: str) -> str:
    """What tells two URLs apart: not the scheme, nor a password, nor a fragment."""
    parts = urlparse(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{host}{parts.path}{'?' if parts.query else ''}{parts.query}"


def _file_name(url: str) -> str:
    name = Path(unquote(urlparse(url).path)).name
    if not name or not name.isprintable():
        raise InputError(f"{url}: names no file; give the URL of a checkpoint file")
    return name


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> tuple[str | None, str | None]:
    """(hash, identity of the URL) that lie beside a fetched file; None = not known."""
    try:
        text = _record(path).read_text()
    except (OSError, ValueError):
        return None, None
    digest = re.match(r"[0-9a-f]{64}\b", text)
    origin = re.search(r"^# (\S+)$", text, re.MULTILINE)
    return digest and digest.group(), origin and origin.group(1)


def _fetch_alone(source: Source, patience: Patience, title: str) -> Path:
    """Downloads unless another process did so meanwhile."""
    folder, name = checkpoint_cache(), _file_name(source.entry)
    try:
        with _made(folder), _locked(folder / name):
            if source.path.is_file():
                path = _checked(source)
                logger.info("%s: sha256 %s", path, _recorded(path)[0] or file_sha256(path))
                return path
            return _download(source, source.path, patience, title)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot keep {name} there ({error.strerror or error}); "
            "set GEOPOSE_CACHE to another folder"
        ) from error


def _download(source: Source, path: Path, patience: Patience, title: str) -> Path:
    part = path.with_name(path.name + ".part")
    download(source.entry, part, patience, title)
    if problem := _problem(part, path.suffix):
        discard_part(part)
        raise InputError(f"{source.entry}: what the server sends {problem}; nothing was kept")
    digest = file_sha256(part)
    size = part.stat().st_size
    if source.sha256 not in (None, digest):
        discard_part(part)
        raise InputError(
            f"{source.entry}: sha256 of the downloaded file is {digest}, but {source.sha256} is "
            "wanted; nothing was kept"
        )
    with atomic_path(_record(path)) as record:
        record.write_text(f"{digest}  {path.name}\n# {_identity(source.entry)}\n")
    part.replace(path)
    discard_part(part)
    logger.info("fetched %s: %.1f MB, sha256 %s", path, size / 1e6, digest)
    return path


def _problem(part: Path, suffix: str) -> str:
    """Why a downloaded file cannot be a checkpoint; empty if it may be one."""
    try:
        kind = foreign_kind(part, suffix)
        if not kind and is_zip(part):
            check_zip(part)
    except zipfile.BadZipFile as error:
        return f"is a damaged archive ({one_line(error, 120)})"
    return kind


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder that is there, and gone again if it was not and nothing was left in it."""
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not was_there:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds `NAME.lock`, waiting for whoever holds it; freed by the system if the holder dies."""
    lock_path = path.with_name(path.name + ".lock")
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_path.open("w")
        except FileNotFoundError:
            continue  # somebody else has just removed the empty folder
        with lock:
            _wait_for(lock, path)
            if not _is_at(lock, lock_path):
                continue  # its last holder removed it
            try:
                yield
            finally:
                lock_path.unlink(missing_ok=True)
            return


def _wait_for(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("%s: another process is fetching it, waiting", path.name)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
