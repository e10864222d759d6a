"""Static per-channel scales: ``g (.) (W x + b) = (g (.) W) x + g (.) b``, along every path that commutes with a scale.

Source: Touvron et al. 2021, "Going deeper with Image Transformers" (CaiT), equation 4: LayerScale.
"""

from __future__ import annotations

from torch import Tensor

from stripefold.folding.fuse_parts import misfit
from stripefold.folding.sides import scale_of
from stripefold.folding.static_constants import StaticConstant
from stripefold.folding.traced import Traced
from stripefold.graph.scale_paths import Target, backward, forward
from stripefold.layers.rule import rule_for


def scale_merged(traced: Traced, scale: StaticConstant, axis: int, v: Tensor) -> dict[str, dict[str, Tensor]] | str:
    """Layer -> its tensors with a scale in them, float64; or why it stays.

    Args:
        traced: the model.
        scale: the product.
        axis: its channel axis.
        v: shape (C,), float64.
    """
    reasons = []
    for target in _targets(traced, scale, axis):
        found = _written(traced, target, v) if isinstance(target, Target) else target
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return reasons[0]


def _targets(traced: Traced, scale: StaticConstant, axis: int) -> list[Target | str]:
    """Where the scale may go: against the flow; and with it, where a module disappears by that.

    A parameter that would stay as ones is not worth the surprise of other layers changing behind it: the gain of
    a normalisation that has no rule is such a one.
    """
    found = [backward(traced.graph, scale.moved, axis, product=scale.result, **traced.known)]
    if scale.whole:
        found.append(forward(traced.graph, scale.result, axis, **traced.known))
    return [each if isinstance(each, Target) else each.why for each in found]


def _written(traced: Traced, target: Target, v: Tensor) -> dict[str, dict[str, Tensor]] | str:
    """Layer -> its tensors with the parts of the target in them, float64; or why not."""
    if target.nonnegative and bool((v < 0).any()):
        return "it has negative entries, and a rectifier or a maximum lies between it and the layer"
    merged: dict[str, dict[str, Tensor]] = {}
    for part in target.parts:
        layer = traced.modules[part.layer]
        rule = rule_for(layer)
        if rule is None or part.layer in merged:
            return f"{part.layer} would take it twice"
        factor = scale_of(part, v)
        functions = rule.output if part.side == "output" else rule.input or {}
        held = {key: getattr(layer, key, None) for key in functions}
        merged[part.layer] = {
            key: functions[key](layer, traced.ledger.read(tensor), factor.to(tensor.device))
            for key, tensor in held.items()
            if tensor is not None
        }
        reason = misfit(layer, rule, merged[part.layer])
        if reason is not None:
            return reason
    return merged
