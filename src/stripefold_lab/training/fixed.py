"""A fixed subset of the test images, at even distances, without drawing a random number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from stripefold_lab.processes import ALONE, ProcessRank

if TYPE_CHECKING:
    from stripefold_lab.training.data import Data


def fixed_images(data: Data, count: int, batch_size: int, place: ProcessRank = ALONE) -> DataLoader[Any]:
    """Test images at even distances: a folder's images are sorted by class, and the first ones would be of one class.

    Args:
        data: The data set.
        count: How many; all where there are not that many.
        batch_size: Images per batch; where what belongs to an image is the number of a class, batches are pairs.
        place: Of this process among those that look at its part of them each.
    """
    total = len(data.test)
    chosen = [number * total // min(count, total) for number in place.part(min(count, total))]
    generator = torch.Generator()  # a loader draws a number for its workers, also where it has none
    return DataLoader(Subset(data.test, chosen), batch_size, collate_fn=_collate, generator=generator)


def _collate(pairs: list[tuple[Tensor, Any]]) -> Tensor | tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in pairs])
    classes = [label for _, label in pairs if isinstance(label, int)]
    return (images, torch.tensor(classes)) if len(classes) == len(pairs) else images
