"""Makes torchvision importable beside a torch build that its compiled extension does not fit.

timm, pytorch-toolbelt and catalyst import torchvision, whose import fails ("operator
torchvision::nms does not exist") where pip paired a CPU torch with a CUDA torchvision. Nothing
here uses those operators, so declaring their schemas is enough. Call `ensure_torchvision` before
the first import of any of the three; a machine whose extension loads is left as it is.
"""

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_KEEP_ALIVE: list[torch.library.Library] = []  # a Library that is collected takes its schemas away


@lru_cache(maxsize=1)
def ensure_torchvision() -> str:
    """Prepares the import of torchvision, once.

    Returns:
        "native" if its extension loads (or it is imported already), "declared" if the two operators
        were declared instead, "absent" if torchvision is not installed.
    """
    if "torchvision" in sys.modules:
        return "native"
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "absent"
    extension = next(iter(sorted(Path(spec.origin).parent.glob("_C*.so"))), None)
    if extension is not None:
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            pass  # built for another torch: declare the operators below
        else:
            return "native"
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _KEEP_ALIVE.append(library)
    return "declared"
