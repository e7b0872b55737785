"""What is read must be a file: opening a pipe waits for somebody who writes to it."""

import errno
import os
import stat
from pathlib import Path


def check_ordinary(path: Path | str) -> None:
    """Finds out before a path is opened whether it is a file (or a folder, which open refuses).

    Raises:
        OSError: it is a pipe, a socket or a device; or there is nothing.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
