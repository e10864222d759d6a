"""A fixed subset of the test images, at even distances, without drawing a random number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from stripefold_lab.processes import ALONE, ProcessRank

if TYPE_CHECKING:
    from stripefold_lab.training.data import Data


@dataclass(frozen=True)
class FixedImages:
    """Images of a data set in batches, the same at every pass; no random number is drawn for it.

    Attributes:
        images: Pairs of an image and what belongs to it; where that is the number of a class, batches are pairs too.
        batch_size: Images per batch.
    """

    images: Dataset[Any]
    batch_size: int

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for start in range(0, self._count, self.batch_size):
            pairs = [self.images[index] for index in range(start, min(start + self.batch_size, self._count))]
            images = torch.stack([image for image, _ in pairs])
            classes = [label for _, label in pairs if isinstance(label, int)]
            yield (images, torch.tensor(classes)) if len(classes) == len(pairs) else images

    @property
    def _count(self) -> int:
        return len(self.images)  # type: ignore[arg-type]


def fixed_images(data: Data, count: int, batch_size: int, place: ProcessRank = ALONE) -> FixedImages:
    """Test images at even distances: a folder's images are sorted by class, and the first ones would be of one class.

    Args:
        data: The data set.
        count: How many; all where there are not that many.
        batch_size: Images per batch.
        place: Of this process among those that look at its part of them each.
    """
    total = len(data.test)
    chosen = [number * total // min(count, total) for number in place.part(min(count, total))]
    return FixedImages(Subset(data.test, chosen), batch_size)
