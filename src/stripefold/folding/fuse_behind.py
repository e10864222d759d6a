"""BatchNorms directly behind a convolution or linear layer: one call of each, one consumer, nothing in between.

``BN(W x + b) = (s W) x + (s b + t)`` with the norm's scale s and shift t. The convolution keeps its type and gains a
bias; what is left of the BatchNorm's place (nothing, or the activation it carried) stays as a module, so that the
model's own code runs on.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2 (equation 14).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.algebra.merge import shift_bias
from stripefold.folding.fuse_parts import Setting, input_axis, misfit, no_constants, remainder, scale_shift, unfit
from stripefold.layers.rule import rule_for
from stripefold.modules.foldable import FoldNote

NOTHING_IN_FRONT = "no convolution or linear layer directly in front"


def merge_behind_(setting: Setting, names: list[str]) -> tuple[dict[nn.Module, nn.Module], dict[str, FoldNote]]:
    """Merge the named BatchNorms into the layers in front of them.

    Returns:
        What stays in the places of those merged, and one row for each name.
    """
    ahead, reasons = _layers_ahead(setting)
    replacements: dict[nn.Module, nn.Module] = {}
    notes: dict[str, FoldNote] = {}
    for name in names:
        norm, kind = setting.modules[name], type(setting.modules[name]).__name__
        layer_name = ahead.get(name)
        found = reasons.get(name, NOTHING_IN_FRONT) if layer_name is None else _merged(setting, layer_name, name)
        if isinstance(found, str) or layer_name is None:
            notes[name] = FoldNote(name=name, kind=kind, folded=False, why=str(found))
            continue
        setting.ledger.write_(setting.modules[layer_name], found)
        replacements[norm] = remainder(norm)
        notes[name] = FoldNote(name=name, kind=kind, folded=True, why=f"merged into {layer_name}")
    return replacements, notes


def _layers_ahead(setting: Setting) -> tuple[dict[str, str], dict[str, str]]:
    """BatchNorm -> the layer whose only consumer it is, and BatchNorm -> why a layer in front cannot take it."""
    ahead: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name, module in setting.modules.items():
        rule = rule_for(module)
        if rule is None or rule.norm or not rule.commutes or name not in setting.trace.called:
            continue
        follower = setting.trace.follower(name)
        if follower.name is not None:
            ahead[follower.name] = name
            continue
        for consumer in setting.trace.consumers(name):
            reasons.setdefault(consumer, f"{name}: {follower.why}")
    return ahead, reasons


@torch.no_grad()
def _merged(setting: Setting, layer_name: str, norm_name: str) -> dict[str, Tensor] | str:
    """The layer's tensors with the norm in them, float64; or why this pair cannot be merged."""
    layer, norm = setting.modules[layer_name], setting.modules[norm_name]
    rule = rule_for(layer)
    if rule is None or "bias" not in rule.output:
        return f"{layer_name} ({type(layer).__name__}) has no place for a bias"
    reason = unfit(setting, layer_name, "output", "shift") or no_constants(setting, norm_name)
    if reason is not None:
        return reason
    trace = setting.trace
    produced, taken = trace.calls(layer_name)[0].outputs[0], trace.calls(norm_name)[0].inputs[0]
    axis = input_axis(norm, len(taken))
    if produced[rule.axis] != taken[axis] or trace.follower(layer_name).axis != axis:
        return f"the channels of {layer_name} lie on another axis than its own"
    read = setting.ledger.read
    scale, shift = scale_shift(norm, setting.ledger)
    tensors = {name: getattr(layer, name, None) for name in rule.output if name != "bias"}
    merged = {k: rule.output[k](layer, read(t), scale) for k, t in tensors.items() if t is not None}
    bias = layer._parameters.get("bias")
    merged["bias"] = shift_bias(None if bias is None else read(bias), scale, shift)
    return misfit(layer, rule, merged) or merged
