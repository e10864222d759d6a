"""Every random number of a run, derived from where in the run it is needed.

Lightning saves no random state. A run that is killed and resumed can therefore only repeat itself if no state is
carried along: the order of an epoch follows from (seed, epoch), an image's augmentation from (seed, epoch, index),
dropout and the like from (seed, step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

SeedKey = tuple[int, int]


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A number below 2**63 that nothing but its arguments determine.

    Args:
        seed: Seed of the run.
        purpose: What the numbers are for; two purposes never share numbers.
        position: Where in the run: epoch, step, index.

    >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    text = ",".join([purpose, *map(str, (seed, *position))])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class EpochSampler(Sampler[SeedKey]):
    """Every index once per epoch, in an order that follows from (seed, epoch); gives keys (epoch, index).

    The epoch travels with the index, so that worker processes that outlive an epoch know which one it is.

    Args:
        length: Number of samples.
        seed: Seed of the run.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SeedKey]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator)
        return iter([(self.epoch, index) for index in order.tolist()])
