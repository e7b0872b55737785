"""How many views go through a model at once: found by trying, never configured.

On a CPU one image at a time is fastest and needs the least memory. On a GPU the first image alone
tells what an image takes; then as many go together as fit. Where that was too hopeful, half as many
go on from there, and other models leave the device before anything fails.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from geopose.inference.predict.tta import Look, Prediction
from geopose.inference.predict.weight_offload import WeightOffload

logger = logging.getLogger(__name__)

# More than this brings no speed, and leaves 16 GB enough for the weights of nine models.
MOST_BYTES = 10 * 2**30
_SHARE_OF_FREE = 0.8


class ViewBatches:
    """One model, fed with views.

    Args:
        model: (image N x 3 x H x W, gsd_m N x 1) -> Prediction.
        offload: where the model lives.
    """

    def __init__(self, model: nn.Module, offload: WeightOffload) -> None:
        self._model = model
        self._offload = offload
        self._limits: dict[torch.Size, int] = {}  # images at once, by their size

    def predict(self, looks: Sequence[Look]) -> Iterator[tuple[int, Prediction]]:
        """(number of the view, its prediction for all N images), in any order of views.

        Raises:
            torch.OutOfMemoryError: a single image does not fit.
        """
        groups: dict[torch.Size, list[int]] = {}
        for number, look in enumerate(looks):
            groups.setdefault(look.image.shape, []).append(number)
        for numbers in groups.values():
            yield from self._predict_alike(looks, numbers)

    def _predict_alike(
        self, looks: Sequence[Look], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Prediction]]:
        """Views of one size; a view is ready when all of its images are."""
        items = [(number, item) for number in numbers for item in range(len(looks[number].image))]
        ready: list[Prediction] = []
        done = 0
        while done < len(items):
            found = self._run(looks, items[done:])
            ready += found
            for number, item in items[done : done + len(found)]:
                if item == len(looks[number].image) - 1:
                    own, ready = ready[: item + 1], ready[item + 1 :]
                    yield number, Prediction.cat(own)
            done += len(found)

    def _run(self, looks: Sequence[Look], items: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Predictions of the first of these images, as many as fit."""
        size = looks[items[0][0]].image.shape[-2:]
        while True:
            limit = self._limits.get(size, 1)
            chunk = items[: _even_share(len(items), limit)]
            image = torch.cat([looks[view].image[item : item + 1] for view, item in chunk])
            gsd_m = torch.cat([looks[view].gsd_m[item : item + 1] for view, item in chunk])
            try:
                with self._offload.at_work(self._model):
                    if size in self._limits:
                        return self._model(image, gsd_m).split()
                    return [self._measure(image, gsd_m, size)]
            except torch.OutOfMemoryError:
                if len(chunk) == 1 and not self._offload.can_make_room():
                    raise
            # Not in the handler: there the error still holds the maps that did not fit.
            self._give_way(size, len(chunk))

    def _measure(self, image: torch.Tensor, gsd_m: torch.Tensor, size: torch.Size) -> Prediction:
        """Predicts the first image of a size and finds out how many more would fit."""
        device = self._offload.device
        if device.type != "cuda" or not getattr(self._model, "uses_torch_memory", True):
            prediction = self._model(image, gsd_m)
            self._limits[size] = 1
            return prediction
        self._model(image, gsd_m)  # cuDNN tries kernels at the first call, in memory of their own
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        prediction = self._model(image, gsd_m)
        torch.cuda.synchronize(device)
        taken = max(1, torch.cuda.max_memory_allocated(device) - before)
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        room = min(_SHARE_OF_FREE * (free + unused), MOST_BYTES)
        self._limits[size] = max(1, int(room / taken))
        return prediction

    def _give_way(self, size: torch.Size, tried: int) -> None:
        """After a lack of memory: fewer images at once, or fewer models on the device."""
        if tried > 1:
            self._limits[size] = tried // 2
            logger.info("out of memory with %d images at once, going on with %d", tried, tried // 2)
        else:
            self._offload.make_room()
            logger.info("out of memory with all models on the GPU: they wait on the host from here")
        if self._offload.device.type == "cuda":
            torch.cuda.empty_cache()


def _even_share(count: int, limit: int) -> int:
    """Size of the next chunk, so that all chunks of `count` images are (nearly) of one size.

    Equal sizes spare compilers and cuDNN's search for the best kernel another shape.
    """
    chunks = -(-count // limit)
    return -(-count // chunks)
