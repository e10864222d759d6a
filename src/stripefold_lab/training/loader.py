"""A loader whose worker processes start with the first batch of an epoch, never before the epoch is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class EpochLoader(DataLoader[Any]):
    """A ``DataLoader`` that asks its sampler for nothing until the first batch of an epoch is asked for.

    The order of an epoch and every augmentation are functions of (seed, epoch, index), and the sampler is told the
    epoch before its first batch. Without workers that is early enough: a sampler is read batch by batch. Worker
    processes are sent their first batches when the iterator is made, and Lightning makes the first iterator of a run
    before it tells the epoch: a resumed run would repeat the order and the augmentation of epoch 0. So the iterator of
    the workers is made here by the first batch, and the number of workers shows in nothing.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        yield from super().__iter__()
