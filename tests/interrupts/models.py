"""Small models with everything that a call might leave changed: hooks, streaming state, shared layers, mixed modes."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from tests.lifecycle import Block, prepared


class Meter:
    """A helper object that goes on counting and remembers what it saw; no module."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: deque[Tensor] = deque(maxlen=3)
        self.by_name: dict[str, Any] = {"mean": None}

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x.detach().mean())
        self.by_name["mean"] = self.seen[-1]
        return x


class Squeeze(nn.Module):
    """Channel attention as everybody writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 2, 1)
        self.fc2 = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Busy(nn.Module):
    """Hooks with collections, a meter, a layer used twice and held in a list as well, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = (3, 6, 6)
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.shared = nn.Conv2d(4, 4, 1)
        self.again = self.shared
        self.also = [self.norm, {"stem": self.stem}]
        self.attention = Squeeze(4)
        self.head = nn.Linear(4, 5)
        self.meter = Meter()
        self.collected: list[tuple[int, ...]] = []
        self.blocks[0].register_forward_hook(lambda module, args, output: self.collected.append(tuple(output.shape)))
        self.blocks[1].bn2.register_forward_pre_hook(lambda module, args: None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.meter(torch.relu(self.also[0](self.also[1]["stem"](x))))
        x = self.attention(self.blocks(x))
        return self.head(self.again(torch.relu(self.shared(x))).mean((2, 3)))


class Plain(nn.Module):
    """Three layers in a row with a residual branch of Linear layers; dropout, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.attention = Squeeze(6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        return self.head(x + self.body(x))


def images(batch: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def made(kind: type[nn.Module], *, training: bool = False, seed: int = 0) -> nn.Module:
    """A model whose numbers are all random; the statistics of its norms fit."""
    torch.manual_seed(seed)
    model = prepared(kind(), images(8)).train(training)
    if training:
        model.norm.eval()  # mixed modes, as fine-tuning has them
    return model
