"""A home folder for libraries that keep a cache in one, where the system names none."""

import os
import tempfile


def ensure_home() -> None:
    """Sets HOME where it is not known, as in a container with a user of no name.

    What is kept below `~` would otherwise go to a folder of that name in the working directory.
    """
    if os.path.expanduser("~") != "~":
        return
    home = os.path.join(tempfile.gettempdir(), f"geopose-{os.getuid()}")
    try:
        os.mkdir(home, 0o700)
    except FileExistsError:
        if os.lstat(home).st_uid != os.getuid() or os.path.islink(home):  # somebody else's
            home = tempfile.mkdtemp(prefix="geopose-")
    except OSError:
        return  # nothing can be kept anywhere
    os.environ["HOME"] = home
