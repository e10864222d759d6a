"""A run small enough for a test: a network of 1 k parameters, 64 digits, 2 epochs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from stripefold_lab import models
from stripefold_lab.training.config import TrainConfig


class TinyNet(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = (x + self.norm2(self.conv(x))).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """``model: tiny`` builds ``TinyNet``; every other name what it names."""
    real = models.create_model

    def create(name: str, **options) -> nn.Module:
        if name == "tiny":
            return TinyNet(options["num_classes"], options["in_channels"])
        return real(name, **options)

    monkeypatch.setattr(models, "create_model", create)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model="tiny",
        epochs=2,
        batch_size=32,
        limit_train=64,
        limit_test=32,
        accelerator="cpu",
        progress="none",
        tensorboard=False,
        attention_options={"reduction": 2},
        run_dir=str(tmp_path / "run"),
    )
