"""One annotated image, whatever file it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stripefold.errors import DataError

IGNORED = 255
"""The class number of pixels that count neither in the loss nor in the score."""
LEFT_OUT = "objects without area in their image are left out"
"""What a reader's warning says of these."""
_LEAST = 2.0**-20
"""Of the image's longer side: a side of a box that float32 keeps above 0 through resizing and mirroring."""


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

    Raises:
        DataError: A box has no area: detectors refuse to train on it. Readers leave such objects out.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    crowd: Tensor
    classes: Tensor | None

    def __post_init__(self) -> None:
        empty = (~has_area(self.boxes, max(self.image.shape[1:]))).nonzero().flatten().tolist()
        if empty:
            box = ", ".join(f"{value:g}" for value in self.boxes[empty[0]].tolist())
            size = " x ".join(map(str, self.image.shape[1:]))
            raise DataError(
                f"object {empty[0] + 1} of a scene of {size} pixels has the box [{box}], which has no area; "
                "leave it out"
            )


class Scenes(Protocol):
    """Indexable scenes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes without the background."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


def has_area(boxes: Tensor, longest: Tensor | float) -> Tensor:
    """Which boxes hold something that is left after resizing and mirroring, (n,) bool.

    Args:
        boxes: (n, 4) float32: left, top, right, bottom.
        longest: The longer side of their image, or (n,) of the image of each; 0 where it is not known.

    >>> has_area(torch.tensor([[0.0, 0, 1, 1], [3, 3, 3, 9], [500, 0, 500 + 1e-6, 9]]), 640)
    tensor([ True, False, False])
    """
    return (boxes[:, 2:] - boxes[:, :2]).amin(1) > _LEAST * longest


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
