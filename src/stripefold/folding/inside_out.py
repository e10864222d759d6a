"""The order of folding, from the inside out: a gate in a block before the block, a block before the gate on it.

All of that happens in one record of float64 numbers, so that every tensor is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from stripefold.errors import FoldError
from stripefold.folding.biases import BiasTarget, outermost, place_biases_
from stripefold.modules.float64_weights import Float64Weights
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

    Raises:
        FoldError: gates that fit one by one are too much together.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for name in dict.fromkeys(outermost(name, found) for name in found):
        replacements[found[name]] = _fold_inside_out_(found[name], weights)
        _write_(model, weights, new=False)
    plain = replace_modules(model, replacements)
    new_keys = place_biases_(plain, homes, weights)
    _write_(plain, weights)
    return plain, new_keys


def _write_(model: nn.Module, weights: Float64Weights, *, new: bool = True) -> None:
    misfit = weights.misfit()
    if misfit is not None:
        raise FoldError(misfit.refusal({module: name for name, module in model.named_modules()}))
    weights.write_(new=new)


def _fold_inside_out_(root: Foldable, weights: Float64Weights) -> nn.Module:
    """The layer that takes the place of one module of ours."""
    layer: nn.Module = root
    for module in reversed([each for each in root.modules() if isinstance(each, Foldable)]):  # parents come first
        layer = module.folded_(weights)
        replace_modules(root, {module: layer})
    return layer
