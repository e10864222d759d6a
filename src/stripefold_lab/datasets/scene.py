"""One annotated image, whatever file it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

IGNORED = 255
"""The class number of pixels that count neither in the loss nor in the score."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image with what is on it.

    Attributes:
        image: Bytes (3, H, W).
        boxes: Of the objects, (n, 4) float32: left, top, right, bottom in pixels; right and bottom are outside.
        labels: Class number of each object, (n,) int64; 0 is the background, classes start at 1.
        masks: Pixels of each object, (n, H, W) bool; None where the file has none.
        crowd: Which objects are groups that a detector need not find, (n,) bool.
        classes: Class number of each pixel, (H, W) uint8, 255 where it does not count; None where the file has none.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    crowd: Tensor
    classes: Tensor | None


class Scenes(Protocol):
    """Indexable scenes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


def box_of(mask: Tensor) -> Tensor:
    """The smallest box, (4,) float32, around the pixels of a mask (H, W); a mask without pixels gives zeros."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return torch.zeros(4)
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


def no_objects(image: Tensor, classes: Tensor | None = None) -> Scene:
    """A scene whose file tells no objects apart.

    Args:
        image: Bytes (3, H, W).
        classes: Class number of each pixel, (H, W) uint8.
    """
    return Scene(
        image=image,
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=None,
        crowd=torch.zeros(0, dtype=torch.bool),
        classes=classes,
    )
