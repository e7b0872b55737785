"""What happens at a step and an epoch of training; callbacks/order.py lists them in order."""

from geopose.system.catalyst_import import ensure_catalyst

ensure_catalyst()  # before anything below this package imports it
