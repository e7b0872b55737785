"""Imports catalyst alone: without it, the import brings in whatever trackers are installed.

At its first import catalyst tries onnxruntime, matplotlib, mlflow, wandb and more, to find out
whether they are there; some of them write below the home folder or report their use. None of them
is used here. They stay importable for whoever wants them.
"""

import importlib
import sys
from functools import lru_cache

_OPTIONAL = (
    "onnx", "onnxruntime", "matplotlib", "imageio", "skimage", "optuna", "mlflow", "wandb",
    "comet_ml", "neptune", "fairscale", "deepspeed", "apex", "torch_xla",
)  # fmt: skip


@lru_cache(maxsize=1)
def ensure_catalyst() -> None:
    """Imports catalyst, once, with everything out of sight that it would import and not need."""
    if "catalyst" in sys.modules:
        return
    # None in that table: not to be found.
    hidden = [name for name in _OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("catalyst.dl")
    finally:
        for name in hidden:
            del sys.modules[name]
