"""BatchNorms directly in front of convolutions and linear layers: ``W (s x + t) + b = (W diag(s)) x + (b + W t)``.

The scale commutes with every padding, the shift does not commute with zeros: such a convolution's border would see t
where it saw 0. So every layer that takes the norm's output must be linear, unpadded, or padded with its own content.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.folding.fuse_parts import Setting, input_axis, misfit, no_constants, remainder, scale_shift, unfit
from stripefold.folding.ledger import Ledger
from stripefold.folding.takers import bias_with_input_shift, no_input_shift, takers
from stripefold.layers.rule import rule_for
from stripefold.modules.foldable import FoldNote


def merge_in_front_(setting: Setting, names: list[str]) -> tuple[dict[nn.Module, nn.Module], dict[str, FoldNote]]:
    """Merge the named BatchNorms into the layers behind them.

    Returns:
        What stays in the places of those merged, and one row for each name.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    notes: dict[str, FoldNote] = {}
    for name in names:
        norm, kind = setting.modules[name], type(setting.modules[name]).__name__
        found = _merged(setting, name)
        if isinstance(found, str):
            notes[name] = FoldNote(name=name, kind=kind, folded=False, why=found)
            continue
        for layer_name, tensors in found.items():
            setting.ledger.write_(setting.modules[layer_name], tensors)
        replacements[norm] = nn.Identity().train(norm.training)
        notes[name] = FoldNote(name=name, kind=kind, folded=True, why=f"merged into {', '.join(found)} behind it")
    return replacements, notes


@torch.no_grad()
def _merged(setting: Setting, name: str) -> dict[str, dict[str, Tensor]] | str:
    """Layer -> its tensors with the norm in them, float64; or why the norm stays."""
    norm = setting.modules[name]
    reason = no_constants(setting, name)
    if reason is not None:
        return reason
    if not isinstance(remainder(norm), nn.Identity):
        return "the activation it carries stands in front of what follows"
    found = _takers(setting, name)
    if isinstance(found, str):
        return found
    merged: dict[str, dict[str, Tensor]] = {}
    for layer_name in found:
        layer = setting.modules.get(layer_name)
        reason = "a part of a site" if layer is None else no_input_shift(layer)
        reason = reason or unfit(setting, layer_name, "output", "input", "shift")
        if reason is not None or layer is None:
            return f"{layer_name}: {reason}"
        tensors = _with_norm(layer, norm, setting.ledger)
        if isinstance(tensors, str):
            return f"{layer_name}: {tensors}"
        merged[layer_name] = tensors
    return merged


def _takers(setting: Setting, name: str) -> list[str] | str:
    """The layers behind a norm, the same in every run; or why it stays."""
    found: list[str] | str | None = None
    for graph in setting.trace.graphs:
        results = graph.results(name)
        if len(results) > 1:
            return f"called {len(results)} times"
        for result in results:
            axis = input_axis(setting.modules[name], len(graph.nodes[result].shape))
            here = takers(graph, result, axis)
            if isinstance(here, str):
                return here
            if found is not None and set(here) != set(found):
                return f"{', '.join(map(str, found))} on one example and {', '.join(here)} on another are behind it"
            found = here
    alone = next((layer for layer in found or () if setting.trace.runs_without(layer, name)), None)
    if alone is not None:
        return f"{alone} runs without it on another example"
    return "it did not run on the example" if found is None else found


def _with_norm(layer: nn.Module, norm: nn.Module, ledger: Ledger) -> dict[str, Tensor] | str:
    """The layer's weight and bias with its input scaled and shifted, float64; or why they do not fit its dtype."""
    rule = rule_for(layer)
    assert rule is not None
    assert rule.input is not None
    own = layer._parameters["weight"]
    assert own is not None
    scale, shift = scale_shift(norm, ledger)
    merged = {
        "weight": rule.input["weight"](layer, ledger.read(own), scale),
        "bias": bias_with_input_shift(layer, shift, ledger),
    }
    return misfit(layer, rule, merged) or merged
