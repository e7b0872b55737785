"""Makes catalyst importable where Python has no distutils: from 3.12 on.

catalyst 22.4, its last release, compares torch's version at import with `LooseVersion` of
`distutils.version`, and uses nothing else of it. setuptools brings a distutils of its own, but it
need not be installed. Call `ensure_distutils` before the first import of catalyst; a machine that
has a distutils, from whichever source, is left as it is.
"""

import importlib
import re
import sys
from functools import lru_cache, total_ordering
from types import ModuleType


@total_ordering
class LooseVersion:
    """A version that compares by its numbers, in their order: 1.10 comes after 1.9."""

    def __init__(self, text: str) -> None:
        self.numbers = [int(number) for number in re.findall(r"\d+", text)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LooseVersion) and self.numbers == other.numbers

    def __lt__(self, other: "LooseVersion") -> bool:
        return self.numbers < other.numbers

    def __hash__(self) -> int:
        return hash(tuple(self.numbers))


@lru_cache(maxsize=1)
def ensure_distutils() -> str:
    """Prepares the import of `distutils.version`, once.

    Returns:
        "native" if Python or setuptools has it, "declared" if this module's class stands in for it.
    """
    try:
        importlib.import_module("distutils.version")
    except ImportError:
        package, module = ModuleType("distutils"), ModuleType("distutils.version")
        vars(module)["LooseVersion"] = LooseVersion
        sys.modules.update({"distutils": package, "distutils.version": module})
        return "declared"
    return "native"
