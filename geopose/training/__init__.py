"""Training: everything between a config and a run directory."""

from geopose.system.distutils_shim import ensure_distutils
from geopose.system.torchvision_shim import ensure_torchvision

ensure_torchvision()  # timm and catalyst are imported below this package
ensure_distutils()  # for catalyst
