"""The batches of a step, divided over processes; the batch size is the step's, whatever their number.

Every process takes its part of every batch, so that k processes see the batches one process would see. Where a last
batch does not divide evenly the parts differ by an image; a process left without one computes on an image that does not
count, because the others wait for it in every forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from stripefold.errors import ConfigError
from stripefold_lab.processes import ALONE, ProcessRank


@dataclass(frozen=True, kw_only=True)
class BatchSharding:
    """How ``count`` samples in batches of ``batch_size`` are divided.

    Attributes:
        count: Samples of an epoch.
        batch_size: Of a step, over all processes.
        drop_last: Whether a last batch that is not full is left out.
        place: Whose part is asked for.
        even: Whether every process is given as many batches, by samples that do not count.

    Raises:
        ConfigError: If there are more processes than samples.

    >>> shares = [BatchSharding(count=5, batch_size=4, place=ProcessRank(rank=rank, world=2)) for rank in (0, 1)]
    >>> [[share.counted(batch) for batch in range(len(share))] for share in shares]
    [[2, 0], [2, 1]]
    """

    count: int
    batch_size: int
    drop_last: bool = False
    place: ProcessRank = ALONE
    even: bool = True

    def __post_init__(self) -> None:
        if self.count < self.place.world:
            raise ConfigError(
                f"{self.place.world} processes are to share {self.count} images: start no more processes than there "
                "are images, or raise limit_train or limit_test"
            )

    def __len__(self) -> int:
        """Batches of an epoch that this process is given."""
        return len(self.batches())

    def batches(self) -> list[int]:
        """Their numbers."""
        whole, rest = divmod(self.count, self.batch_size)
        numbers = range(whole + (rest > 0 and not self.drop_last))
        return [number for number in numbers if self.even or self.counted(number)]

    def total(self, batch: int) -> int:
        """Samples of a batch, over all processes."""
        return min(self.batch_size, self.count - batch * self.batch_size)

    def counted(self, batch: int) -> int:
        """Samples of a batch that are this process's."""
        return len(self.place.part(self.total(batch)))

    def keys(self, batch: list[Any]) -> list[Any]:
        """This process's part of a batch; one sample that does not count where it has none."""
        return [batch[index] for index in self.place.part(len(batch))] or batch[:1]


class ShardedBatches(Sampler[list[Any]]):
    """This process's part of every batch, in the order of a sampler.

    Args:
        sampler: Gives the keys of all samples; Lightning tells it the epoch.
        shares: How they are divided.
    """

    def __init__(self, sampler: Iterable[Any], shares: BatchSharding) -> None:
        self.sampler = sampler
        self.shares = shares

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[list[Any]]:
        keys = list(self.sampler)
        size = self.shares.batch_size
        for batch in self.shares.batches():
            yield self.shares.keys(keys[batch * size : (batch + 1) * size])
