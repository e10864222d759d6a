"""Indexable images with their classes: held in memory, or read from files when asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Subset

from stripefold.errors import DataError
from stripefold_lab.datasets.image_files import read_image


class Samples(Protocol):
    """What a data set holds, by index; here pairs of an image (C, H, W), bytes or floats in 0..1, and its class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


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


def keep(images: Samples) -> ArrayImages:
    """All images decoded, as one tensor of bytes; those that are held in memory stay as they are.

    Args:
        images: All of one size.

    Raises:
        DataError: If they are not; names two of them.
    """
    if isinstance(images, ArrayImages):
        return images
    with ThreadPoolExecutor() as pool:  # reading and decoding let go of Python's lock
        found = list(pool.map(images.__getitem__, range(len(images))))
    first = found[0][0].shape
    odd = next((index for index, (image, _) in enumerate(found) if image.shape != first), None)
    if odd is not None:
        raise DataError(
            f"cache holds images of one size, and image 0 is {tuple(first)} where image {odd} is "
            f"{tuple(found[odd][0].shape)}: set cache to false"
        )
    return ArrayImages(torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found]))


def choose(samples: Samples, limit: int | None) -> Samples:
    """At most ``limit`` of the samples: the same random choice in every run, so that runs stay comparable.

    Args:
        samples: All of them.
        limit: How many; None is all.
    """
    if limit is None or limit >= len(samples):
        return samples
    chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:limit]
    if isinstance(samples, ArrayImages):
        return ArrayImages(samples.images[chosen], samples.labels[chosen])
    return Subset(samples, chosen.tolist())  # type: ignore[arg-type]  # whose type says less than it takes
