"""Seeds of a training step: random numbers follow from where a step stands, not from what ran
before it, so that a run resumed anywhere draws what it would have drawn.
"""

import random

import numpy as np
import torch


def seed_step(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seeds torch (CPU and GPU), numpy and python for one batch of one process.

    Args:
        seed: of the run.
        epoch: counted from 1.
        batch: number of the batch in its epoch, from 0.
        rank: of the process; processes draw different masks.
    """
    first, second = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(2)
    # torch.manual_seed writes down the call stack for GPUs that were never used, at each call.
    torch.default_generator.manual_seed(int(first))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(first))
    np.random.seed(int(second))
    random.seed(int(second))
