"""What is a gate: normalisations are told by what they do, hard gates and blends are not lost, groups are channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.stripe.discover import discover
from tests.stripe.gated import CHANNELS, Gated, images, plain, seeded

Gate = Callable[[Gated, Tensor], Tensor]


def energy(x: Tensor) -> Tensor:
    return x.square().mean((2, 3), keepdim=True)


def spread(x: Tensor) -> Tensor:
    return x.std((2, 3), keepdim=True)


def scale(model: Gated, x: Tensor) -> Tensor:
    return model.scale(x)[:, :, None, None]


def largest(x: Tensor) -> Tensor:
    """1 for the two channels of the largest mean."""
    return torch.zeros(len(x), CHANNELS, dtype=x.dtype).scatter(1, x.mean((2, 3)).topk(2).indices, 1.0)


def halves(model: Gated, x: Tensor) -> Tensor:
    return x * torch.sigmoid(F.conv2d(energy(x), model.fc.weight[:, :3, None, None], groups=2))


NORMALISATIONS: dict[str, Gate] = {
    "division by a root": lambda m, x: x / energy(x).sqrt(),
    "reciprocal": lambda m, x: x * (energy(x).sqrt() + 1e-6).reciprocal(),
    "number in front": lambda m, x: x * torch.div(1.0, spread(x)),
    "number in front, and a small one": lambda m, x: x * torch.true_divide(2, torch.add(1e-5, energy(x).sqrt())),
    "rounded down": lambda m, x: x * torch.div(3.0, energy(x).sqrt(), rounding_mode=None),
    "power": lambda m, x: x * torch.pow(energy(x) + 1e-5, -0.5),
    "exp of minus log": lambda m, x: x * torch.exp(-0.5 * torch.log(energy(x) + 1e-5)),
    "to the base 2": lambda m, x: x * torch.exp2(-torch.log2(energy(x).sqrt())),
    "clamped from below": lambda m, x: x / spread(x).clamp(min=1e-5),
    "clamped on both sides": lambda m, x: x * (1 / spread(x).clamp(1e-5, 1e5)),
    "clamped afterwards": lambda m, x: x * (1 / spread(x)).clamp(max=100),
    "by a maximum": lambda m, x: x * (1 / x.abs().amax((2, 3), keepdim=True)),
    "root of one over": lambda m, x: x * torch.sqrt(1 / energy(x)),
    "variance of moments": lambda m, x: x * (energy(x) - x.mean((2, 3), keepdim=True) ** 2 + 1e-5).rsqrt(),
    "a gain on top": lambda m, x: x * (m.gamma * torch.rsqrt(energy(x) + 1e-5)),
    "where": lambda m, x: x * torch.where(energy(x) > 0, 1 / energy(x).sqrt(), torch.zeros_like(energy(x))),
    "statistics of the batch": lambda m, x: x * torch.rsqrt(x.var((0, 2, 3), keepdim=True) + 1e-5),
    "statistics of groups": lambda m, x: (
        x.unflatten(1, (2, -1)) * x.unflatten(1, (2, -1)).square().mean((2, 3, 4), keepdim=True).rsqrt()
    ).flatten(1, 2),
    "einsum": lambda m, x: torch.einsum("nchw,nc->nchw", x, energy(x).flatten(1).add(1e-5).rsqrt()),
    "vector norm": lambda m, x: x * torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True).pow(-1),
    "functional": lambda m, x: F.normalize(x.flatten(2), dim=2).view_as(x),
    "fused": lambda m, x: torch.addcdiv(torch.zeros_like(x), x, energy(x).sqrt().expand_as(x)),
}
GATES: dict[str, Gate] = {
    "thresholded": lambda m, x: x * (scale(m, x) > 0.5).to(x.dtype),
    "a mask": lambda m, x: x * (scale(m, x) > 0.5),
    "by a step": lambda m, x: x * torch.heaviside(scale(m, x) - 0.5, torch.ones((), dtype=x.dtype)),
    "by a sign": lambda m, x: x * torch.sign(scale(m, x) - 0.5),
    "one of two numbers": lambda m, x: x * torch.where(scale(m, x) > 0.5, 1.0, 0.25),
    "two thresholds": lambda m, x: x * ((scale(m, x) > 0.4) & (scale(m, x) < 0.6)),
    "by the type": lambda m, x: x * (scale(m, x) > 0.5).int().type_as(x),
    "sigmoid, number in front": lambda m, x: x * torch.div(1.0, torch.add(1.0, torch.exp(-3 * scale(m, x)))),
    "one minus": lambda m, x: x * torch.sub(1.0, scale(m, x)),
    "straight-through": lambda m, x: x * ((scale(m, x) > 0.5).to(x.dtype) - scale(m, x).detach() + scale(m, x)),
    "rounded": lambda m, x: x * scale(m, x).round(),
    "the largest few": lambda m, x: (
        x
        * torch.zeros(len(x), CHANNELS, dtype=x.dtype).scatter(1, x.mean((2, 3)).topk(2).indices, 1.0)[..., None, None]
    ),
    "hard sigmoid written out": lambda m, x: x * (m.fc(x.mean((2, 3))) / 6 + 0.5).clamp(0, 1)[:, :, None, None],
    "hard sigmoid of the mean": lambda m, x: x * (x.mean((2, 3), keepdim=True) + 0.5).clamp(0, 1),
    "by ReLU6": lambda m, x: x * (F.relu6(m.fc(x.mean((2, 3))) + 3) / 6)[:, :, None, None],
    "sigmoid written out": lambda m, x: x * (1 / (1 + torch.exp(-m.fc(x.mean((2, 3))))))[:, :, None, None],
    "sigmoid of the mean": lambda m, x: x * (1 / (1 + torch.exp(-x.mean((2, 3), keepdim=True)))),
    "by the deviation": lambda m, x: x * spread(x),
    "relative energy": lambda m, x: x * (energy(x) / energy(x).mean(1, keepdim=True)),
    "grouped convolution": halves,
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_normalisation_is_no_gate(name: str) -> None:
    discovery = discover(seeded(Gated, NORMALISATIONS[name]), images())
    assert discovery.gates == ()
    assert any("a normalisation: the factor is one over a size" in other.why for other in discovery.others)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_one(name: str) -> None:
    discovery = discover(seeded(Gated, GATES[name]), images())
    assert [gate.channels for gate in discovery.gates] == [CHANNELS]
    report = sf.observe(seeded(Gated, GATES[name]), images())
    assert [layer.images for layer in report.layers] == [12]


def test_a_hard_gate_is_recorded() -> None:
    model, x = seeded(Gated, GATES["a mask"]), images()
    with torch.no_grad():
        expected = (model.scale(model.conv(x)) > 0.5).double().mean(0)
    (layer,) = sf.observe(model, x).layers
    assert torch.allclose(layer.mean, expected)


def by_numpy(model: Gated, x: Tensor) -> Tensor:
    v = 1 / (1 + np.exp(-x.detach().mean((2, 3), keepdim=True).numpy()))
    return x * torch.from_numpy(v)


def by_lists(model: Gated, x: Tensor) -> Tensor:
    return x * torch.tensor(x.detach().mean((2, 3), keepdim=True).tolist(), dtype=x.dtype)


def by_numbers(model: Gated, x: Tensor) -> Tensor:
    return x * float(x.detach().mean())


def all_in_numpy(model: Gated, x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * x.detach().mean((2, 3), keepdim=True).numpy())


def per_image_kernel(model: Gated, x: Tensor) -> Tensor:
    kernels = model.scale(x).reshape(-1, 1, 1, 1)
    return F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=kernels.shape[0]).view_as(x)


def biased_kernel(model: Gated, x: Tensor) -> Tensor:
    kernels = model.scale(x).reshape(-1, 1, 1, 1)
    bias = model.fc.bias.repeat(len(x))
    return F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, bias, groups=kernels.shape[0]).view_as(x)


def unfolded_kernel(model: Gated, x: Tensor) -> Tensor:
    windows = F.unfold(x, 3, padding=1).view(len(x), CHANNELS, 9, -1)
    kernels = model.scale(x).repeat(1, 9).view(len(x), CHANNELS, 9, 1)
    return (windows * kernels).sum(2).view_as(x)


def shifted_kernel(model: Gated, x: Tensor) -> Tensor:
    taps = model.select(x.mean((2, 3))).view(len(x), 2, CHANNELS, 1, 1)
    return (torch.stack([x, x.roll(1, 2)], 1) * taps).sum(1)


def conditional_norm(model: Gated, x: Tensor) -> Tensor:
    rows = x.reshape(1, -1, *x.shape[2:])
    return F.instance_norm(rows, weight=model.scale(x).flatten()).view_as(x)


OTHERS: dict[Gate, str] = {
    by_numpy: "came through numpy or Python",
    by_lists: "came through numpy or Python",
    by_numbers: "reads values that depend on the image into Python",
    all_in_numpy: "numpy computes a part of it",
    per_image_kernel: "one kernel per image",
    biased_kernel: "one kernel per image",
    unfolded_kernel: "one kernel per image",
    shifted_kernel: "one kernel per image",
    conditional_norm: "a norm whose weight is computed from the image",
}
BLENDS: dict[str, tuple[Gate, str]] = {
    "lerp with zeros": (lambda m, x: torch.lerp(torch.zeros_like(x), x, scale(m, x)), "blends two values"),
    "lerp of two maps": (lambda m, x: torch.lerp(x, F.relu(x), scale(m, x)), "blends two values"),
    "where": (lambda m, x: torch.where(scale(m, x) > 0.5, x, 0.0), "chooses between two values"),
    "masked": (lambda m, x: x.masked_fill(scale(m, x) > 0.5, 0.0), "chooses between two values"),
    "divided": (lambda m, x: x / (1 + torch.exp(-scale(m, x))), "a gate written as a division"),
    "open exponent": (lambda m, x: x * energy(x).pow(torch.tensor(-0.5).double()), "exponent is a tensor"),
    "by itself": (lambda m, x: x.mean((2, 3), keepdim=True) / x, "a division by the map itself"),
}


@pytest.mark.parametrize("gate", OTHERS, ids=lambda gate: gate.__name__)
def test_what_is_no_product_of_its_own_has_a_row(gate: Gate) -> None:
    discovery = discover(seeded(Gated, gate), images())
    assert discovery.gates == ()
    assert sum(OTHERS[gate] in other.why for other in discovery.others) == 1


@pytest.mark.parametrize("name", BLENDS)
def test_what_multiplies_in_other_words_has_a_row(name: str) -> None:
    gate, reason = BLENDS[name]
    discovery = discover(seeded(Gated, gate), images())
    assert discovery.gates == ()
    assert any(reason in other.why for other in discovery.others)


def test_a_relu_written_out_is_nothing() -> None:
    discovery = discover(seeded(Gated, lambda m, x: torch.where(x > 0, x, 0.1 * x)), images())
    assert (discovery.gates, discovery.others) == ((), ())


# Groups of channels that lie along the sample axis.


def grouped(model: Gated, x: Tensor) -> Tensor:
    rows = x.view(2 * len(x), 3, *x.shape[2:])
    return (rows * model.scale(x).view(2 * len(x), 3, 1, 1)).view_as(x)


def grouped_in_steps(model: Gated, x: Tensor) -> Tensor:
    rows = x.unflatten(1, (2, 3)).flatten(0, 1)
    return (rows * model.scale(x).view(2 * len(x), 3, 1, 1)).view_as(x)


def grouped_product_first(model: Gated, x: Tensor) -> Tensor:
    rows = model.scale(x).view(2 * len(x), 3, 1, 1) * x.reshape(-1, 3, *x.shape[2:])
    return rows.reshape(x.shape)


@pytest.mark.parametrize("gate", [grouped, grouped_in_steps, grouped_product_first], ids=lambda gate: gate.__name__)
def test_statistics_of_groups_are_those_of_the_channels(gate: Gate) -> None:
    (found,) = discover(seeded(Gated, gate), images()).gates
    assert (found.groups, found.channels) == (2, CHANNELS)
    (layer,) = sf.observe(seeded(Gated, gate), images()).layers
    (expected,) = sf.observe(seeded(Gated, plain), images()).layers
    assert (layer.images, layer.channels) == (12, CHANNELS)
    assert torch.allclose(layer.mean, expected.mean, rtol=1e-12)
    assert layer.stripe_index == pytest.approx(expected.stripe_index, rel=1e-10)
    with pytest.raises(sf.errors.BakeError, match="2 groups along the sample axis"):
        sf.bake(seeded(Gated, gate).eval(), images())


class Frames(nn.Module):
    """Frames of one clip stand along the sample axis, too, and are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, CHANNELS, 3), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.flatten(0, 1))
        return (x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]).mean((2, 3))


def test_frames_are_samples() -> None:
    clips = torch.randn(4, 6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gate,) = discover(seeded(Frames), clips).gates
    assert (gate.groups, gate.channels) == (1, CHANNELS)
    (layer,) = sf.observe(seeded(Frames), clips).layers
    assert layer.images == 24
