"""Batches that are kept between passes: prepared once, and the same every time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stripefold_lab.training.loader import KeptBatches

_BYTES = 10 * (4 * 4 + 8)


class Counted(Dataset[tuple[Tensor, int]]):
    """Ten samples of four numbers, and how often one was prepared."""

    def __init__(self) -> None:
        self.prepared = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.prepared += 1
        return torch.full((4,), float(index)), index


def test_kept_batches_are_prepared_once_and_cannot_be_changed() -> None:
    samples = Counted()
    batches = KeptBatches(DataLoader(samples, batch_size=4))
    for _ in range(3):
        found = 0
        for images, labels in batches:
            assert torch.equal(images, labels[:, None].expand(-1, 4).float())
            found += len(labels)
            images.zero_()
            labels.zero_()
        assert found == 10
    assert samples.prepared == 10
    assert len(batches) == 3


def test_a_pass_that_was_left_early_keeps_nothing() -> None:
    samples = Counted()
    batches = KeptBatches(DataLoader(samples, batch_size=4))
    next(iter(batches))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert samples.prepared == 14


def test_what_does_not_fit_is_read_anew() -> None:
    for most, prepared in ((_BYTES, 10), (_BYTES - 1, 20)):
        samples = Counted()
        batches = KeptBatches(DataLoader(samples, batch_size=4), most_bytes=most)
        assert sum(len(labels) for _ in range(2) for _, labels in batches) == 20
        assert samples.prepared == prepared
