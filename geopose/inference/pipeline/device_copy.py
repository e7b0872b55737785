"""Images to the device and results back. On CUDA both happen beside the computation.

In: RGB arrays in main memory. Out: the batch that an ensemble takes; results in main memory, to be
waited for by whoever needs them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class DeviceCopy:
    """Copies between main memory and a device.

    Args:
        device: what the models compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))

    def upload(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Images of one size, H x W x 3 each -> N x 3 x H x W uint8 on the device."""
        planes = [torch.from_numpy(image) for image in images]
        if not self._cuda:
            return torch.stack(planes).permute(0, 3, 1, 2).contiguous()
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            moved = [image.pin_memory().to(self.device, non_blocking=True) for image in planes]
            batch = torch.stack(moved).permute(0, 3, 1, 2).contiguous()
        current.wait_stream(self._up)
        batch.record_stream(current)
        return batch

    def download(self, results: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Starts copying tensors to main memory; the returned function waits for them."""
        if not self._cuda:
            there = list(results)
            return lambda: there
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        arrived = torch.cuda.Event()
        copies = []
        with torch.cuda.stream(self._down):
            for result in results:
                copy = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                copies.append(copy.copy_(result, non_blocking=True))
                result.record_stream(self._down)
            arrived.record(self._down)

        def wait() -> list[Tensor]:
            arrived.synchronize()
            return copies

        return wait
