"""The order of folding, from the inside out: a gate in a block before the block, a block before the gate on it.

Where a layer is computed anew (a branch block), all of that happens in float64, and the layer is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stripefold.folding.biases import BiasTarget, outermost, place_biases_
from stripefold.folding.weights import Float64Weights
from stripefold.modules.foldable import Foldable
from stripefold.modules.modules import replace_modules


def fold_all_(
    model: nn.Module, found: Mapping[str, Foldable], homes: Mapping[str, BiasTarget], weights: Float64Weights
) -> tuple[nn.Module, tuple[str, ...]]:
    """Fold everything of ours in a model, in place; ``check_fold`` has agreed before.

    Args:
        model: the model.
        found: dotted path -> every module of ours, outer ones first.
        homes: of ``plan_biases``.
        weights: learns what the numbers were before rounding.

    Returns:
        The root, and the keys of biases that found no other place.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    roundings: dict[nn.Module, torch.dtype] = {}
    for name in dict.fromkeys(outermost(name, found) for name in found):
        replacements[found[name]] = _fold_inside_out_(found[name], roundings)
    plain = replace_modules(model, replacements)
    new_keys = place_biases_(plain, homes, weights)
    for layer, dtype in roundings.items():
        for key, tensor in layer._parameters.items():
            if tensor is not None and tensor.dtype != dtype:
                weights.note(layer, key, tensor)
        layer.to(dtype)
    return plain, new_keys


def _fold_inside_out_(root: Foldable, roundings: dict[nn.Module, torch.dtype]) -> nn.Module:
    """The layer that takes the place of one module of ours; notes what is still in float64, and its dtype to be."""
    inside = [(module, module.rounds_to) for module in root.modules() if isinstance(module, Foldable)]
    for module, dtype in inside:
        if dtype is not None:
            module.double()
    layer: nn.Module = root
    for module, dtype in reversed(inside):  # parents come before their children
        layer = module.folded_()
        if dtype is not None:
            roundings[layer] = dtype
        replace_modules(root, {module: layer})
    return layer
