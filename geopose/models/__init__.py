"""Networks. timm and pytorch-toolbelt import torchvision, which has to be made importable first."""

import importlib
import warnings

from geopose.system.torchvision_shim import ensure_torchvision

ensure_torchvision()
with warnings.catch_warnings():
    # toolbelt imports timm under a path that timm calls old: nothing a user could act on.
    warnings.filterwarnings("ignore", message="Importing from timm.models.layers")
    importlib.import_module("pytorch_toolbelt.modules")
