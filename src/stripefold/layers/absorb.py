"""How a layer takes a scale or a shift into its tensors: its rule's functions on the record of float64 numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.algebra.rounding import overflows, underflows
from stripefold.graph.absorption import Absorption, Side
from stripefold.layers.rule import Rule, rule_for
from stripefold.layers.shift import shift_key
from stripefold.layers.substitute import substituted
from stripefold.modules.float64_weights import Float64Weights, like_tensor


@torch.no_grad()
def absorb(weights: Float64Weights, layer: nn.Module, part: Absorption, vector: Tensor) -> None:
    """Let a layer take its part of a change.

    Args:
        weights: learns the numbers.
        layer: it accepts it (``layers.accepts``).
        part: which side takes which entries.
        vector: the change, shape (C,).
    """
    rule, taken = rule_for(layer), part.taken(vector)
    assert rule is not None  # it accepts
    if part.change == "scale":
        absorb_scale(weights, layer, rule, taken, part.side)
    elif part.side == "output":
        absorb_addition(weights, layer, rule, taken)
    else:
        view = exact_view(weights, layer)
        for key, function in (rule.input_shift or {}).items():
            exact = function(view, weights.read(layer, key), taken.to(like_tensor(layer, key).device))
            weights.set(layer, {key: exact})


def absorb_scale(weights: Float64Weights, layer: nn.Module, rule: Rule, v: Tensor, side: Side = "output") -> None:
    """Scale a layer's output (or input).

    Args:
        weights: learns the numbers.
        layer: the layer.
        rule: of the layer, or of what it was when it was gated.
        v: the scale, shape (C,), float64.
        side: which of its sides.
    """
    view, functions = exact_view(weights, layer), rule.side(side)
    found = {key: own for key in functions if (own := weights.read(layer, key)) is not None}
    weights.set(layer, {key: functions[key](view, own, v.to(own.device)) for key, own in found.items()})


def absorb_addition(weights: Float64Weights, layer: nn.Module, rule: Rule, a: Tensor) -> None:
    """Add a vector (C,), float64, to a layer's output, which may get a bias by that; arguments as above."""
    key = shift_key(rule)
    assert key is not None  # it accepts
    own, a = weights.read(layer, key), a.to(like_tensor(layer, key).device)
    weights.set(layer, {key: a if own is None else own + a.view(own.shape)})


def exact_view(weights: Float64Weights, layer: nn.Module) -> nn.Module:
    """A view of a layer that has the numbers of the record as its tensors, for what a rule reads of it."""
    return substituted(layer, weights.known(layer))


def why_not_fitting(weights: Float64Weights, before: Float64Weights) -> str | None:
    """Why what was merged since does not fit the tensors' types, or None: too large, or too small to be kept."""
    for layer, key, exact in weights.changed():
        if before.known(layer).get(key) is exact:
            continue
        dtype = like_tensor(layer, key).dtype
        name = str(dtype).removeprefix("torch.")
        if overflows(exact, dtype):
            return f"the merged weights would overflow {name}"
        if not _is_sum(layer, key) and underflows(exact, dtype):
            return f"the merged weights would underflow {name}"
    return None


def _is_sum(layer: nn.Module, key: str) -> bool:
    """Whether a tensor is added, so that a small one is no loss."""
    rule = rule_for(layer)
    return rule is not None and (key == shift_key(rule) or key not in rule.output)
