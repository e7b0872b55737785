"""Where the models of an ensemble are while others compute: on the device, or waiting on the host.

All of them stay on the device as long as they fit. When memory runs short each comes for its turn,
and its place is free again afterwards.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from geopose.system.devices import is_out_of_memory

logger = logging.getLogger(__name__)

_LARGEST_SHARE = 0.4  # of the free memory for weights; the rest is for the maps


class WeightOffload:
    """Keeps track of the models and moves them.

    Args:
        models: all of them, on the host.
        device: where they compute.
    """

    def __init__(self, models: nn.ModuleList, device: torch.device) -> None:
        self._models = models
        self.device = device
        self.waiting = False
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.waiting = sum(_weight_bytes(model) for model in models) > _LARGEST_SHARE * free
        if self.waiting:
            self._pin()
        elif device.type != "cpu" and not self._all_fit():
            self.make_room()

    def _all_fit(self) -> bool:
        """Sends all models to the device; False: some of them did not fit."""
        try:
            for model in self._models:
                model.to(self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def can_make_room(self) -> bool:
        """Whether there are other models on the device that could wait on the host."""
        return not self.waiting and self.device.type != "cpu" and len(self._models) > 1

    def make_room(self) -> None:
        """Sends all models to the host; from now on each comes for its turn."""
        logger.info("out of memory with all models on the GPU: they wait on the host from here")
        self.waiting = True
        for model in self._models:
            model.to("cpu")
        if self.device.type == "cuda":
            self._pin()
            torch.cuda.empty_cache()

    @contextmanager
    def at_work(self, model: nn.Module) -> Iterator[None]:
        """Has the model on the device for the length of a block."""
        if not self.waiting:
            yield
            return
        tensors = [*model.parameters(), *model.buffers()]
        host = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.device, non_blocking=True)
            yield
        finally:  # no copy back: nothing has changed
            for tensor, data in zip(tensors, host, strict=True):
                tensor.data = data

    def _pin(self) -> None:
        """Page-locked host memory, from which a copy to the GPU is fast."""
        for model in self._models:
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.data = tensor.data.pin_memory()


def _weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
