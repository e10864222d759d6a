"""Small networks in which positions meet a linear map, each in another way, and what stands in for a gate by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import prepared, scatter_

SIDE = 12


class Stem(nn.Sequential):
    """3 x 12 x 12 -> 6 x 4 x 4."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3))


class LeNet(nn.Module):
    """Convolutions, flatten, linear layers."""

    def __init__(self, *, last: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.last = last
        self.stem = Stem()
        self.fc1 = nn.Linear(6 * 16, 10, bias=bias)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.permute(0, 2, 3, 1) if self.last else x
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class Adaptive(nn.Module):
    """As VGG does it: pooled to 4 x 4 whatever comes, dropped out, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Stem()
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Pooled(nn.Module):
    """Convolutions, a module that averages all positions, a head."""

    def __init__(self, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = Stem()
        self.conv = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.relu(self.bn(self.conv(self.stem(x))))).flatten(1))


class MeanOf(nn.Module):
    """A pooling of a user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Strided(nn.Module):
    """Audio: one position axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm1d(6)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.tanh(self.bn(self.conv(x.flatten(2))))).flatten(1))


class Clip(nn.Module):
    """Video: three position axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.tanh(self.conv(x.unsqueeze(1)))).flatten(1))


class Mixer(nn.Module):
    """One block of MLP-Mixer; ``kind`` says which layer mixes the positions."""

    def __init__(self, kind: str = "mlp", *, bias: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Conv2d(3, 6, 3, stride=3)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        if kind == "conv":
            self.mix: nn.Module = nn.Conv1d(16, 16, 1, bias=bias)
        elif kind == "linear":
            self.mix = nn.Linear(16, 16, bias=bias)
        else:
            self.mix = nn.Sequential(nn.Linear(16, 9), nn.GELU(), nn.Linear(9, 16, bias=bias))
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        mixed = self.norm1(x)
        x = x + (self.mix(mixed) if self.kind == "conv" else self.mix(mixed.transpose(1, 2)).transpose(1, 2))
        x = x + self.mlp(self.norm2(x))
        return self.head(torch.tanh(x[:, 0] + 0.3 * x[:, 7]))


NETS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "lenet": (LeNet, "fc1", (4, 4)),
    "lenet without bias": (lambda: LeNet(bias=False), "fc1", (4, 4)),
    "channels last": (lambda: LeNet(last=True), "fc1", (4, 4)),
    "vgg": (Adaptive, "classifier.1", (4, 4)),
    "mlp": (Mixer, "mix.2", (4, 4)),
    "linear": (lambda: Mixer("linear"), "mix", (4, 4)),
    "linear without bias": (lambda: Mixer("linear", bias=False), "mix", (4, 4)),
    "conv": (lambda: Mixer("conv"), "mix", (4, 4)),
}
"""name -> (network, the place, its grid): those whose keys stay"""
POOLS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "adaptive": (Pooled, "pool", (4, 4)),
    "average": (lambda: Pooled(nn.AvgPool2d(4)), "pool", (4, 4)),
    "own": (lambda: Pooled(MeanOf()), "pool", (4, 4)),
    "flattening": (lambda: Pooled(nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1))), "pool.0", (4, 4)),
    "one axis": (Strided, "pool", (72,)),
    "three axes": (Clip, "pool", (3, 12, 12)),
}
"""those whose pooling becomes a convolution"""


def pictures(batch: int = 4, seed: int = 1, side: int = SIDE) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Float64, everything random, statistics that fit."""
    torch.manual_seed(0)
    return prepared(build().double(), pictures(8))


def gated(build: Callable[[], nn.Module], attention: str = "spatial", **options: Any) -> nn.Module:
    """With gates over positions, away from their start."""
    options = {"where": "positions", "example": pictures()} | options
    return scatter_(sf.attach(built(build), attention, **options))


class ByHand(nn.Module):
    """A gate over positions written out on the map: in front of a layer or pooling, or behind a layer of tokens."""

    def __init__(self, base: nn.Module, scale: Callable[[], Tensor], *, behind: bool) -> None:
        super().__init__()
        self.base, self.behind = base, behind
        self._scale = (scale,)

    def forward(self, x: Tensor) -> Tensor:
        s = self._scale[0]()
        return self.base(x) * s if self.behind else self.base(x * s)
