"""Indexable images with their classes: held in memory, or read from files when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from stripefold.errors import DataError


class Images(Protocol):
    """Indexable pairs of an image (C, H, W), bytes or floats in 0..1, and the number of its class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory.

    Attributes:
        images: (N, C, H, W).
        labels: (N,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True)
class FileImages:
    """Images read from their files whenever they are asked for.

    Attributes:
        samples: Path and class number of each.
    """

    samples: list[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return read_image(path), label


def read_image(path: str | Path) -> Tensor:
    """An image file as bytes (3, H, W).

    Raises:
        DataError: If it is no readable image.
    """
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no readable image ({error}); replace it or take it out") from error
