"""Small models with attention written in every way that people write it; the gate stands in the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 6


class Gated(nn.Module):
    """A convolution, something done with its map, another convolution, a pooled classifier."""

    def __init__(self, gate: Callable[[Gated, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.fc = nn.Linear(CHANNELS, CHANNELS)
        self.other = nn.Linear(CHANNELS, CHANNELS)
        self.select = nn.Linear(CHANNELS, 2 * CHANNELS)
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.gamma = nn.Parameter(torch.rand(CHANNELS, 1, 1) + 1)
        self.head = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.out = nn.Linear(CHANNELS, 4)
        self.gate = gate or plain

    def scale(self, x: Tensor) -> Tensor:
        """(N, C) in (0, 1), from the mean of each channel."""
        return torch.sigmoid(3 * self.fc(x.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.gate(self, self.conv(x)))
        return self.out(F.relu(x).mean((2, 3)))


def plain(model: Gated, x: Tensor) -> Tensor:
    return x * model.scale(x)[:, :, None, None]


def in_place(model: Gated, x: Tensor) -> Tensor:
    return x.mul_(model.scale(x)[:, :, None, None])


def gate_first(model: Gated, x: Tensor) -> Tensor:
    return model.scale(x)[:, :, None, None] * x


def expanded(model: Gated, x: Tensor) -> Tensor:
    return x * model.scale(x)[:, :, None, None].expand_as(x)


def by_einsum(model: Gated, x: Tensor) -> Tensor:
    return torch.einsum("nchw,nc->nchw", x, model.scale(x))


def flattened(model: Gated, x: Tensor) -> Tensor:
    return (x.flatten(2) * model.scale(x).unsqueeze(-1)).view_as(x)


def one_plus(model: Gated, x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(model.fc(x.mean((2, 3))))[:, :, None, None])


def residual(model: Gated, x: Tensor) -> Tensor:
    return x + x * model.scale(x)[:, :, None, None]


def with_bias(model: Gated, x: Tensor) -> Tensor:
    return x * model.scale(x)[:, :, None, None] + model.other(x.mean((2, 3)))[:, :, None, None]


def channel_last(model: Gated, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return (x * torch.sigmoid(3 * model.fc(x.mean((1, 2), keepdim=True)))).permute(0, 3, 1, 2)


WRITTEN_OUT = (plain, in_place, gate_first, expanded, by_einsum, flattened, one_plus, residual, with_bias, channel_last)


def two(model: Gated, x: Tensor) -> Tensor:
    x = x * model.scale(x)[:, :, None, None]
    return F.relu(x) * torch.sigmoid(model.other(x.amax((2, 3))))[:, :, None, None]


def split(model: Gated, x: Tensor) -> Tensor:
    branches = torch.stack([x, F.relu(x)], 1)
    weights = model.select(x.mean((2, 3))).view(-1, 2, CHANNELS).softmax(1)
    return (branches * weights[:, :, :, None, None]).sum(1)


# What must not be taken for a channel gate, and a piece of the reason.


def nothing(model: Gated, x: Tensor) -> Tensor:
    return F.relu(x)


def layer_scale(model: Gated, x: Tensor) -> Tensor:
    return x * model.gamma


def constant_of_data(model: Gated, x: Tensor) -> Tensor:
    return x * torch.sigmoid(model.fc(torch.ones(CHANNELS, dtype=x.dtype, device=x.device)))[:, None, None]


def spatial(model: Gated, x: Tensor) -> Tensor:
    return x * torch.sigmoid(model.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def coordinates(model: Gated, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean(3, keepdim=True))


def element_by_element(model: Gated, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def per_sample(model: Gated, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((1, 2, 3), keepdim=True))


def normalised(model: Gated, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def divided(model: Gated, x: Tensor) -> Tensor:
    return x / x.norm(dim=(2, 3), keepdim=True)


def powered(model: Gated, x: Tensor) -> Tensor:
    return x * (x.square().mean((2, 3), keepdim=True) + 1e-5) ** -0.5


def additive(model: Gated, x: Tensor) -> Tensor:
    return x + model.fc(x.mean((2, 3)))[:, :, None, None]


def diagonal(model: Gated, x: Tensor) -> Tensor:
    return torch.bmm(torch.diag_embed(model.scale(x)), x.flatten(2)).view_as(x)


def fused(model: Gated, x: Tensor) -> Tensor:
    return torch.addcmul(x, x, model.scale(x)[:, :, None, None])


def outer(model: Gated, x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True) * x.mean(1, keepdim=True)


NO_PRODUCT = (nothing, layer_scale, constant_of_data)
LISTED = {
    spatial: "spatial gate",
    coordinates: "differs over positions",
    element_by_element: "element by element",
    per_sample: "one number for a whole sample",
    normalised: "a normalisation",
    divided: "a normalisation",
    powered: "a normalisation",
    additive: "additive gate",
    diagonal: "diagonal matrix",
    fused: "addcmul",
    outer: "outer product",
}


class Tokens(nn.Module):
    """(N, T, 5) tokens; "channel": one number per sample and channel, "token": one per sample and token, "glu": all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.norm = nn.Linear(5, CHANNELS), nn.LayerNorm(CHANNELS)
        self.fc, self.one, self.out = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 1), nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        factor = {
            "channel": lambda: torch.sigmoid(self.fc(x.mean(1, keepdim=True))),
            "token": lambda: torch.sigmoid(self.one(x)),
            "glu": lambda: torch.sigmoid(self.fc(x)),
        }[self.kind]()
        return self.out(x * factor).mean(1)


class Squeeze(nn.Module):
    """A block x -> x * v(x) whose last function is a module, so that a hook sees v."""

    def __init__(self, channels: int = CHANNELS, gain: float = 3.0) -> None:
        super().__init__()
        self.fc, self.gate, self.gain = nn.Linear(channels, channels), nn.Sigmoid(), gain

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.gain * self.fc(x.mean((2, 3))))[:, :, None, None]


class Stacked(nn.Module):
    """Two gated convolutions (the second gate is the first one again where ``shared``), for images of any size."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.gate1 = Squeeze()
        self.gate2 = self.gate1 if shared else Squeeze()
        self.norm, self.out = nn.BatchNorm2d(CHANNELS), nn.Linear(CHANNELS, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.gate1(self.conv1(x))))
        return self.out(self.drop(self.gate2(self.conv2(x)).mean((2, 3))))


class Overwriting(Stacked):
    """Writes into its gates: into the first before it is used, into the second afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        first = self.gate1.gate(self.gate1.fc(x.mean((2, 3))))
        x = F.relu(self.norm(x * first.add_(1)[:, :, None, None]))
        x = self.conv2(x)
        second = self.gate2.gate(self.gate2.fc(x.mean((2, 3))))
        x = x * second[:, :, None, None]
        second.zero_()
        return self.out(x.mean((2, 3)))


def seeded(build: Callable[..., nn.Module], *args: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model from a fixed seed."""
    torch.manual_seed(0)
    return build(*args, **options).to(dtype)


def images(count: int = 12, side: int = 8, seed: int = 1) -> Tensor:
    """(count, 3, side, side) float64, each with another contrast and colour, so that gates differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)
    return noise + 2 * torch.randn(count, 3, 1, 1, generator=generator, dtype=torch.float64)


def in_batches(x: Tensor, *sizes: int) -> Iterator[Tensor]:
    return iter(torch.split(x, list(sizes)))
