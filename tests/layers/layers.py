"""Random layers and the one comparison that every rule's test makes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from stripefold.algebra.scale import scale_activation
from stripefold.graph.absorption import Absorption, Side
from stripefold.graph.operation_table import Change
from stripefold.layers.absorb import absorb
from stripefold.layers.rule import Rule, rule_for
from stripefold.layers.substitute import forward_with
from stripefold.modules.float64_weights import Float64Weights

EXACT = 1e-10


def randomised(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer in float64 with every parameter and statistic random."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if not tensor.is_floating_point():
                continue
            random = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(0.5 + random.abs() if name.endswith("var") else random)
    return layer


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signed_scale(channels: int, seed: int = 2) -> Tensor:
    """Scales of both signs, none near 1, the first one exactly 0."""
    v = noise(channels, seed=seed)
    v = torch.where(v < 0, v - 0.3, v + 1.4)
    v[0] = 0
    return v


def relative(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    value, expected = value.detach(), expected.detach()
    return float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-3))


def rule_of(layer: nn.Module) -> Rule:
    rule = rule_for(layer)
    assert rule is not None, type(layer)
    return rule


def absorbed(layer: nn.Module, v: Tensor, side: Side = "output", change: Change = "scale") -> dict[str, Tensor]:
    """The layer's tensors with a change of one side in them, as folding makes them."""
    weights = Float64Weights()
    absorb(weights, layer, Absorption(layer="", side=side, index=tuple(range(v.numel())), change=change), v)
    return dict(weights.known(layer))


def output_errors(layer: nn.Module, inputs: tuple[Tensor, ...], *, train: bool) -> tuple[float, float]:
    """The error of the scaled layer against v times the layer, and (the control) of the layer as it is."""
    layer = randomised(layer).train(train)
    rule = rule_of(layer)
    v = signed_scale(rule.channels(layer))
    plain, scaled = copy.deepcopy(layer), copy.deepcopy(layer)
    output = plain(*[tensor.clone() for tensor in inputs])
    expected = scale_activation(output, v, rule.axis)
    value = forward_with(scaled, rule.scaled(scaled, v), [tensor.clone() for tensor in inputs], {})
    for (name, left), right in zip(plain.named_buffers(), scaled.buffers(), strict=True):
        assert torch.equal(left, right), f"{name}: the scaled run updated the statistics differently"
    return relative(value, expected), relative(output, expected)


def input_errors(layer: nn.Module, inputs: tuple[Tensor, ...], *, train: bool) -> tuple[float, float]:
    """The same for the input side."""
    layer = randomised(layer).train(train)
    rule = rule_of(layer)
    assert rule.input_channels is not None
    assert rule.input_axis is not None
    v = signed_scale(rule.input_channels(layer))
    expected = copy.deepcopy(layer)(scale_activation(inputs[0], v, rule.input_axis))
    value = forward_with(copy.deepcopy(layer), absorbed(layer, v, "input"), inputs, {})
    return relative(value, expected), relative(copy.deepcopy(layer)(inputs[0]), expected)
