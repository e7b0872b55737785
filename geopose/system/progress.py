"""Progress bars: on a terminal tqdm's, elsewhere a line every half a minute.

A bar that is redrawn several times a second makes thousands of lines of a log file.
"""

import io
import sys
import time
from contextlib import suppress
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0


class _Lines(tqdm):
    """A bar for a log: what it would show, as a line, and not oftener than every half a minute."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._shown = time.monotonic()
        # What tqdm draws goes nowhere; it looks at the clock itself only between many steps.
        options.update(file=io.StringIO(), mininterval=1.0, disable=bool(options.get("disable")))
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the line if it is time; tqdm calls this whenever it would draw."""
        del msg, pos
        now = time.monotonic()
        if now - self._shown >= LINE_EVERY_S:
            self._shown = now
            with suppress(OSError, ValueError, AttributeError):  # nobody reads it
                sys.stderr.write(f"{self}\n")
                sys.stderr.flush()
        return True


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """A bar on standard error: tqdm's arguments; `disable` is true or false."""
    try:
        on_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed
        on_terminal = False
    return (tqdm if on_terminal else _Lines)(*arguments, **options)
