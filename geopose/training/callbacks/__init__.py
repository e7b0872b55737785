"""What happens at a step and an epoch of training; callbacks/order.py lists them in order."""
