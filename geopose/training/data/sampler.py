"""Order of the training samples: shuffled anew each epoch, sharded, and able to start in the middle
of an epoch.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import DistributedSampler, Sampler


class ResumableSampler(DistributedSampler[Any]):
    """A DistributedSampler whose iteration can leave out the samples that have been seen.

    The order follows from (seed, epoch). `len` is that of the whole epoch.
    """

    skipped = 0  # samples of this process that the next iterations leave out

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.skipped, None)


class BalancedSampler(ResumableSampler):
    """Draws every city equally often: as many samples an epoch as without, in whole numbers.

    The images of a city take turns in a random order; those of a large one do not all have a turn
    in every epoch, those of a small one have several, each augmented anew: index
    `number + turn * images`, beyond the length of the data set if need be.

    Args:
        samples: a GeoposeDataset.
        num_replicas, rank, seed: as of DistributedSampler.
    """

    def __init__(self, samples: Any, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(samples, num_replicas, rank, shuffle=True, seed=seed)
        cities = defaultdict(list)
        for number, record in enumerate(samples.records):
            cities[record.city].append(number)
        self._cities = [cities[name] for name in sorted(cities)]
        self._images = len(samples.records)
        self._length = len(samples)

    def __iter__(self) -> Iterator[Any]:
        order = islice(cycle(self._order()), self.total_size)  # as many for every process
        return islice(order, self.rank + self.skipped * self.num_replicas, None, self.num_replicas)

    def _order(self) -> list[int]:
        """The epoch's samples, of all processes."""
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        share, more = divmod(self._length, len(self._cities))
        drawn: list[int] = []
        for place, numbers in enumerate(self._cities):
            # What is left over goes to other cities in the next epoch.
            draws = share + ((place - self.epoch) % len(self._cities) < more)
            drawn += self._draw(numbers, draws, generator)
        return [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]

    def _draw(self, numbers: list[int], draws: int, generator: torch.Generator) -> list[int]:
        turns = -(-draws // len(numbers))
        found = [
            numbers[i] + turn * self._images
            for turn in range(turns)
            for i in torch.randperm(len(numbers), generator=generator).tolist()
        ]
        return found[:draws]


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
