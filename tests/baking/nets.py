"""Small networks with attention as users write it, for questions that a library's blocks do not ask."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 6


class SE(nn.Module):
    """x -> x * v(x) and nothing else."""

    def __init__(self, channels: int = C) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * v[:, :, None, None]


class InPlace(SE):
    """The same, written over its input."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x.mul_(v[:, :, None, None])


class TokenSE(nn.Module):
    """On tokens (N, L, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, C)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(self.fc(x.mean(1, keepdim=True)))


class GateOnly(nn.Module):
    """Returns v(x); whoever calls it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(C, C, 1)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(self.pool(x)))


class Net(nn.Module):
    """stem -> body -> pooled classifier; ``body`` is called with the net's own modules."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.bn = nn.BatchNorm2d(C)
        for name, module in modules.items():
            setattr(self, name, module)
        self.conv = nn.Conv2d(C, C, 1)
        self.out = nn.Linear(C, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.body(self, self.bn(self.stem(x)))).mean((2, 3)))


def before_conv(net: Net, x: Tensor) -> Tensor:
    return net.conv(net.se(F.silu(x)))


def before_norm(net: Net, x: Tensor) -> Tensor:
    return net.conv(F.relu(net.norm(net.se(F.silu(x)))))


def before_sum(net: Net, x: Tensor) -> Tensor:
    return net.se(net.conv(x)) + x


def behind_relu(net: Net, x: Tensor) -> Tensor:
    return net.se(F.relu(net.conv(x))) + x


def nowhere(net: Net, x: Tensor) -> Tensor:
    return net.se(F.silu(net.conv(x))) + x


def own_product(net: Net, x: Tensor) -> Tensor:
    return net.conv(F.silu(x) * net.gate(x))


def functional(net: Net, x: Tensor) -> Tensor:
    return net.conv(x * torch.sigmoid(net.fc(x.mean((2, 3))))[:, :, None, None])


def twice(net: Net, x: Tensor) -> Tensor:
    return net.se(net.conv(net.se(x)))


def in_a_row(net: Net, x: Tensor) -> Tensor:
    return net.second(net.se(net.conv(x))) + x


def tokens(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = net.mix(net.se(net.norm(x.flatten(2).transpose(1, 2))))
    return net.conv(y.transpose(1, 2).reshape(n, c, h, w))


def joined(net: Net, x: Tensor) -> Tensor:
    return net.wide(torch.cat([x, net.se(F.silu(x))], 1))


def two_products(net: Net, x: Tensor) -> Tensor:
    v = net.gate(x)
    return net.conv(F.silu(x) * v) + F.gelu(x) * v
