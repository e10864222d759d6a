"""Loaders: one whose workers start with the first batch of an epoch, and batches that are kept between passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
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


class KeptBatches:
    """The batches of a loader that gives the same ones every time, read and prepared once and then kept in memory.

    Each pass gives copies, so that a model that writes into its input changes nothing of the next pass. What does not
    fit is read anew each time.

    Args:
        loader: Of (images, labels).
        most_bytes: How much may be kept.
    """

    def __init__(self, loader: DataLoader[Any], most_bytes: int = 2**31) -> None:
        self._loader = loader
        self._most_bytes = most_bytes
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is None:
            yield from self._read()
            return
        for images, labels in self._kept:
            yield images.clone(), labels.clone()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        kept: list[tuple[Tensor, Tensor]] | None = []
        held = 0
        for images, labels in self._loader:
            held += images.nbytes + labels.nbytes
            if held > self._most_bytes:
                kept = None
            if kept is not None:
                kept.append((images.clone(), labels.clone()))
            yield images, labels
        self._kept = kept
