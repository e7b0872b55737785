"""Order of the training samples: shuffled anew each epoch, sharded, and able to start in the middle
of an epoch.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DistributedSampler


class ResumableSampler(DistributedSampler[Any]):
    """A DistributedSampler whose iteration can leave out the samples that have been seen.

    The order follows from (seed, epoch). `len` is that of the whole epoch.
    """

    skipped = 0  # samples of this process that the next iterations leave out

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.skipped, None)
