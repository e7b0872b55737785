"""Training: everything between a config and a run directory."""

from geopose.system.torchvision_shim import ensure_torchvision

ensure_torchvision()  # timm and catalyst are imported below this package
