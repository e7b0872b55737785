"""Order of the training samples: shuffled anew each epoch, sharded, and able to start in the middle
of an epoch.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DistributedSampler, Sampler


class ResumableSampler(DistributedSampler[Any]):
    """A DistributedSampler whose iteration can leave out the samples that have been seen.

    The order follows from (seed, epoch). `len` is that of the whole epoch.
    """

    skipped = 0  # samples of this process that the next iterations leave out

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.skipped, None)


class SizeBatches(Sampler[list[int]]):
    """Batches of images that follow each other and have one size, since others do not stack.

    Args:
        sampler: the order of the images.
        sizes: (height, width) of every image.
        batch_size: most images of a batch.
    """

    def __init__(
        self, sampler: Sampler[int], sizes: Sequence[tuple[int, int]], batch_size: int
    ) -> None:
        self.batch_size = batch_size
        self._batches: list[list[int]] = []
        for index in sampler:
            last = self._batches[-1] if self._batches else []
            if last and len(last) < batch_size and sizes[last[0]] == sizes[index]:
                last.append(index)
            else:
                self._batches.append([index])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
