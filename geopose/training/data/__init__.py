"""Batches of samples: loaders, their order, their workers, mixup."""

from geopose.system.catalyst_import import ensure_catalyst

ensure_catalyst()  # before anything below this package imports it
