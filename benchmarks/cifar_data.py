"""The CIFAR-10 images as tensors of bytes: decoded once, augmented a whole epoch at a time on the device."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stripefold.errors import DataError
from stripefold_lab.training.sources import CIFAR_STATISTICS

SPLIT_SEED = 0
"""decides which training images are held out, the same in every run"""


@dataclass(frozen=True)
class Labelled:
    """Images (N, 3, 32, 32) of bytes and their classes (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Tensor) -> Labelled:
        """Some of them, in that order."""
        return Labelled(self.images[indices.to(self.images.device)], self.labels[indices.to(self.labels.device)])

    def to(self, device: torch.device) -> Labelled:
        """Both tensors on a device."""
        return Labelled(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 batches (n, 3, 32, 32) and labels (n,), in order."""
        normalise = Normalise(self.images.device)
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield normalise(images), labels


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """What the experiment uses: images to train on, held-out ones to decide on, and those that are only reported on."""

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> Cifar:
        """All of it on a device."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return Cifar(**parts, classes=self.classes)


class Normalise:
    """Bytes (N, 3, H, W) to float32 with the reference code's mean and deviation per channel.

    Args:
        device: where the constants lie: a CUDA graph may copy nothing from the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in CIFAR_STATISTICS)

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input."""
        return (images.float() / 255 - self._mean) / self._std


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad bytes (N, 3, H, W) by 4 zeros, cut each image out at its own place, mirror every second one."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 9, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.where(flip, torch.arange(width).flip(0), torch.arange(width))
    padded = F.pad(images, (4, 4, 4, 4))
    out = torch.empty_like(images)
    for piece in torch.arange(count).split(5000):  # bounds the memory of the index
        where = (piece.view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows[piece, None, :, None])
        index = tuple(part.to(images.device) for part in (*where, columns[piece, None, None, :]))
        out[piece[0] : piece[-1] + 1] = padded[index]
    return out


def load_cifar(source: Path, *, validation: int = 5000, limit: int | None = None) -> Cifar:
    """Decode the images.

    Args:
        source: a folder, or a tar file of one, with ``train/CLASS/*`` and ``test/CLASS/*``.
        validation: training images that are held out; each run holds out the same.
        limit: use no more than so many training, and so many test images (a random choice): does it run?

    Raises:
        DataError: where something is missing.
    """
    files = sorted(_files(source), key=lambda entry: entry[0])
    train, classes = _decode(files, "train", source, limit)
    test, test_classes = _decode(files, "test", source, limit)
    if test_classes != classes:
        raise DataError(f"{source}: train has the classes {classes}, test has {test_classes}; they must be the same")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held = min(validation, len(train) // 5)
    return Cifar(train=train.part(order[held:]), validation=train.part(order[:held]), test=test, classes=classes)


def _files(source: Path) -> Iterator[tuple[tuple[str, str, str], bytes]]:
    """(part, class, file name) and content of every image."""
    if source.is_dir():
        for path in source.glob("*/*/*"):
            yield (path.parts[-3], path.parts[-2], path.parts[-1]), path.read_bytes()
        return
    if not source.exists():
        raise DataError(
            f"{source} does not exist; give a folder, or a tar file of one, with train/CLASS and test/CLASS"
        )
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member)
            parts = Path(member.name).parts
            if content is not None and len(parts) >= 3:
                yield (parts[-3], parts[-2], parts[-1]), content.read()


def _decode(
    files: list[tuple[tuple[str, str, str], bytes]], part: str, source: Path, limit: int | None
) -> tuple[Labelled, tuple[str, ...]]:
    chosen = [(kind, content) for (folder, kind, _), content in files if folder == part]
    if not chosen:
        raise DataError(f"{source} holds no images under {part}/CLASS/")
    classes = tuple(sorted({kind for kind, _ in chosen}))
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(SPLIT_SEED))[:limit].sort().values
    chosen = [chosen[index] for index in order.tolist()]
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_pixels, (content for _, content in chosen)))
    labels = torch.tensor([classes.index(kind) for kind, _ in chosen])
    return Labelled(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels), classes


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
