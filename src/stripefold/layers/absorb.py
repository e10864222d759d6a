"""How a layer takes a scale or a shift into its tensors: its rule's functions on the record of float64 numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stripefold.errors import FoldError
from stripefold.graph.absorption import Absorption, Side
from stripefold.layers.rule import Rule, rule_for
from stripefold.layers.shift import shift_key
from stripefold.layers.substitute import substituted
from stripefold.modules.float64_weights import Float64Weights, Misfit, like_tensor


@torch.no_grad()
def absorb(
    weights: Float64Weights, layer: nn.Module, part: Absorption, vector: Tensor, rule: Rule | None = None
) -> None:
    """Let a layer take its part of a change.

    Args:
        weights: learns the numbers.
        layer: it accepts it (``layers.accepts``).
        part: which side takes which entries.
        vector: the change, shape (C,).
        rule: of the layer, where it is not that of its type.

    Raises:
        FoldError: the rule has no such side.
    """
    rule, taken = rule or rule_for(layer), part.taken(vector)
    assert rule is not None  # it accepts
    if part.change == "scale":
        absorb_scale(weights, layer, rule, taken, part.side)
    elif part.side == "output":
        absorb_shift(weights, layer, rule, taken)
    else:
        _absorb_input_shift(weights, layer, rule, taken)


def absorb_scale(weights: Float64Weights, layer: nn.Module, rule: Rule, v: Tensor, side: Side = "output") -> None:
    """Scale a layer's output (or input).

    Args:
        weights: learns the numbers.
        layer: the layer.
        rule: of the layer, or of what it was when it was gated.
        v: the scale, shape (C,), float64.
        side: which of its sides.

    Raises:
        FoldError: the layer has no exact input side.
    """
    view, functions = exact_view(weights, layer), rule.side(side)
    if not functions:
        raise FoldError(f"{rule.key} has no {side} side: a scale of its {side} does not fold into it")
    found = {key: own for key in functions if (own := weights.read(layer, key)) is not None}
    exact = {key: functions[key](view, own, v.to(own.device)) for key, own in found.items()}
    weights.set(layer, exact, added=[key for key in exact if _is_added(rule, key)])


def absorb_shift(weights: Float64Weights, layer: nn.Module, rule: Rule, a: Tensor) -> None:
    """Add a vector (C,), float64, to a layer's output, which may get a bias by that; arguments as above."""
    key = shift_key(rule)
    assert key is not None  # it accepts
    own, a = weights.read(layer, key), a.to(like_tensor(layer, key).device)
    weights.set(layer, {key: a if own is None else own + a.view(own.shape)}, added=[key])


def _absorb_input_shift(weights: Float64Weights, layer: nn.Module, rule: Rule, t: Tensor) -> None:
    if rule.input_shift is None:
        raise FoldError(f"{rule.key} takes no shift of its input")
    view = exact_view(weights, layer)
    for key, function in rule.input_shift.items():
        exact = function(view, weights.read(layer, key), t.to(like_tensor(layer, key).device))
        weights.set(layer, {key: exact}, added=[key] if _is_added(rule, key) else [])


def _is_added(rule: Rule, key: str) -> bool:
    """Whether a layer adds a tensor, by its rule: its bias, and statistics that carry no scale."""
    return key == shift_key(rule) or key not in rule.output


def exact_view(weights: Float64Weights, layer: nn.Module) -> nn.Module:
    """A view of a layer that has the numbers of the record as its tensors, for what a rule reads of it."""
    return substituted(layer, weights.known(layer))


@torch.no_grad()
def misfit_of(layer: nn.Module, rule: Rule, v: Tensor | None, a: Tensor | None = None) -> Misfit | None:
    """Which tensor of a layer would not hold a scale and a shift (C,), float64, of its output; or None."""
    if v is not None and a is None and surely_fits(layer, rule.output, v):
        return None
    trial = Float64Weights()
    if v is not None:
        absorb_scale(trial, layer, rule, v)
    if a is not None:
        absorb_shift(trial, layer, rule, a)
    return trial.misfit()


def surely_fits(layer: nn.Module, keys: Iterable[str], *factors: Tensor) -> bool:
    """Whether tensors hold products with these factors by their largest and smallest, before any is formed.

    It is a bound that every scale function keeps.
    """
    most = least = 1.0
    for each in factors:
        sizes = each.abs()
        most, least = most * (1 + float(sizes.max())), least * min(1.0, float(sizes.min()))
    return all(
        _has_room(tensor, most, least) for key in keys if isinstance(tensor := getattr(layer, key, None), Tensor)
    )


def _has_room(tensor: Tensor, most: float, least: float) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    largest, limits = max(-float(low), float(high)), torch.finfo(tensor.dtype)
    nothing_lost = largest == 0 or least * largest > limits.tiny * tensor.numel() ** 0.5
    return nothing_lost and (1 + largest) * most < limits.max
