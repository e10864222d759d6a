"""Static per-channel additions: ``(W x + b) + t = W x + (b + t)``, and ``W (x + t) + b = W x + (b + W t)``.

The first goes along every path that keeps a shift of the channels, into a layer with a bias, or one that may have one.
The second is for modules that do nothing but add, and disappear by it: zero padding behind them is in the way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.folding.fuse_parts import misfit
from stripefold.folding.sides import unwritable
from stripefold.folding.static_constants import StaticConstant
from stripefold.folding.takers import bias_with_input_shift, no_input_shift, takers
from stripefold.folding.traced import Traced
from stripefold.graph.scale_paths import Part, Reason
from stripefold.graph.shift_paths import shift_backward
from stripefold.layers.probe import disproved
from stripefold.layers.refusal import altered, tied_to
from stripefold.layers.rule import Rule, rule_for
from stripefold.layers.shift import shift_key

Merged = dict[str, dict[str, Tensor]]


def addition_merged(traced: Traced, addition: StaticConstant, axis: int, shift: Tensor) -> Merged | str:
    """Layer -> its bias with an addition in it, float64; or why it stays.

    Args:
        traced: the model.
        addition: the sum.
        axis: its channel axis.
        shift: shape (C,), float64; what is subtracted comes with its sign changed.
    """
    behind = _into_makers(traced, addition, axis, shift)
    if not isinstance(behind, str) or not addition.whole:
        return behind
    ahead = _into_takers(traced, addition, axis, shift)
    return f"{behind}; behind it: {ahead}" if isinstance(ahead, str) else ahead


def _into_makers(traced: Traced, addition: StaticConstant, axis: int, shift: Tensor) -> Merged | str:
    """The biases of the layers that make what is added to."""
    target = shift_backward(traced.graph, addition.moved, axis, addition=addition.result, **traced.known)
    if isinstance(target, Reason):
        return target.why
    merged: Merged = {}
    for part in target.parts:
        layer = traced.modules[part.layer]
        rule = rule_for(layer)
        name = None if rule is None else shift_key(rule)
        if rule is None or name is None or name not in layer._parameters:
            return f"{part.layer} ({type(layer).__name__}) has no place for a bias"
        reason = unwritable(layer, rule, "output") or disproved(layer, rule, "shift")
        if reason is not None:
            return f"{part.layer}: {reason}"
        merged[part.layer] = {name: _shifted(traced, part, name, shift)}
        reason = misfit(layer, rule, merged[part.layer])
        if reason is not None:
            return reason
    return merged


def _shifted(traced: Traced, part: Part, name: str, shift: Tensor) -> Tensor:
    """The bias of one part, float64, with the entries that it takes added."""
    index = torch.tensor(part.index, device=shift.device)
    taken = torch.where(index < 0, 0.0, shift[index.clamp(min=0)])
    own = getattr(traced.modules[part.layer], name)
    return taken if own is None else traced.ledger.read(own) + taken.view(own.shape)


def _into_takers(traced: Traced, addition: StaticConstant, axis: int, shift: Tensor) -> Merged | str:
    """The biases of all layers that take the sum."""
    found = takers(traced.graph, addition.result, axis, neutral=traced.neutral)
    if isinstance(found, str):
        return found
    merged: Merged = {}
    for name in found:
        layer = traced.modules[name]
        rule = rule_for(layer)
        reason = altered(layer) or no_input_shift(layer) or _tied(traced, name, layer, rule)
        if rule is not None:
            reason = reason or unwritable(layer, rule, "output") or disproved(layer, rule, "output", "input", "shift")
        if reason is not None or rule is None:
            return f"{name}: {reason}"
        merged[name] = {"bias": bias_with_input_shift(layer, shift, traced.ledger)}
        reason = misfit(layer, rule, merged[name])
        if reason is not None:
            return reason
    return merged


def _tied(traced: Traced, name: str, layer: nn.Module, rule: Rule | None) -> str | None:
    """Why a layer's bias is not its own, or None."""
    if rule is None:
        return f"no rule for {type(layer).__name__}"
    if name in traced.graph.read:
        return "a tensor of it is read outside its call"
    return tied_to(layer, rule, name, traced.owners, "output")
