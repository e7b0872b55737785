"""Packages that only some uses need: a missing one becomes one line that says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager

from geopose.errors import InputError


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around an import of optional packages.

    Args:
        extra: of pyproject.toml, the one that brings them.
        what: needs them, such as a file.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} needs the package {error.name}, which is not installed; "
            f"pip install 'geopose[{extra}]'"
        ) from error
