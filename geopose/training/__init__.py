"""Training: everything between a config and a run directory."""

from geopose.distutils_shim import ensure_distutils
from geopose.torchvision_shim import ensure_torchvision

ensure_torchvision()  # timm and catalyst are imported below this package
ensure_distutils()  # for catalyst
