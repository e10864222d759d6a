"""Static constants, folded into the layers that make what they scale or shift: nothing is multiplied or added any more.

A module that is nothing but the constant leaves an Identity; a parameter of a block becomes None where that block is
known to ask for it, else ones (a scale) or zeros (an addition). What is merged is neutral from then on, so that others
pass it: a scale behind an addition, an addition behind a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.folding.layer_addition import addition_merged
from stripefold.folding.layer_scale import scale_merged
from stripefold.folding.ledger import Ledger
from stripefold.folding.rule import type_key
from stripefold.folding.static_constants import StaticConstant, is_step, static_constants
from stripefold.folding.traced import Traced
from stripefold.folding.writable import why_not_writable
from stripefold.surgery.example import Example
from stripefold.surgery.foldable import FoldNote
from stripefold.surgery.trace import trace

# Blocks that test their scales for None: taken away together, because one test may decide about all of them.
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "timm.models.beit.Block": ("gamma_1", "gamma_2"),
    "timm.models.convnext.ConvNeXtBlock": ("gamma",),
    "timm.models.edgenext.ConvBlock": ("gamma",),
    "timm.models.edgenext.SplitTransposeBlock": ("gamma",),
    "timm.models.eva.EvaBlock": ("gamma_1", "gamma_2"),  # older versions ask the first about both
    "timm.models.fasternet.MLPBlock": ("layer_scale",),
    "timm.models.iformer.Residual": ("gamma",),
    "timm.models.inception_next.MetaNeXtBlock": ("gamma",),
    "timm.models.rdnet.DenseBlock": ("gamma",),
    "transformers.models.convnext.modeling_convnext.ConvNextLayer": ("layer_scale_parameter",),
}
_NEUTRAL = {"scale": 1.0, "addition": 0.0}


def fold_constants_(model: nn.Module, example: Example, ledger: Ledger) -> list[FoldNote]:
    """Fold static per-channel scales and additions in place, where that is exact.

    Args:
        model: a plain (folded) model.
        example: input for the trace.
        ledger: what earlier steps have merged; learns what is merged here.

    Returns:
        One row per constant: folded into what, or kept and why. A parameter of ones (zeros) is left alone.

    Raises:
        TraceError: the model does not run on the example.
    """
    graph = trace(model, example, is_layer=is_step).graph
    found = list(static_constants(graph, model))
    if not found:
        return []
    folding = _Folding(Traced(model, graph, ledger))
    left = found
    notes: dict[StaticConstant, FoldNote | None] = {}
    while left:
        notes |= {constant: folding.fold_(constant) for constant in left}
        before, left = left, [constant for constant in left if constant.result not in folding.traced.neutral]
        if len(left) == len(before):
            break
    folding.clear_(model)
    return [note for note in (notes[constant] for constant in found) if note is not None]


class _Folding:
    """The state of folding the constants of one traced model."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self._emptied: list[StaticConstant] = []

    def fold_(self, constant: StaticConstant) -> FoldNote | None:
        """Fold one constant; the row that tells of it, or None for a parameter that does nothing."""
        holder, tensor = self._tensor(constant)
        neutral = _NEUTRAL[constant.kind]
        value = self.traced.ledger.read(tensor).flatten()
        trivial = bool((value == neutral).all()) and constant.hindrance is None
        if trivial and not constant.whole:
            self._empty(constant)
            return None
        merged = {} if trivial else self._merged(constant, value)
        kind = type(self.traced.modules[constant.module]).__name__
        if not constant.whole:
            kind = f"{constant.kind} of {type(holder).__name__}"
        name = constant.module if constant.whole else constant.path
        if isinstance(merged, str):
            return FoldNote(name=name, kind=kind, folded=False, why=merged)
        for layer, tensors in merged.items():
            self.traced.ledger.write_(self.traced.modules[layer], tensors)
        key = constant.path.rpartition(".")[2]
        self.traced.ledger.write_(holder, {key: torch.full_like(tensor, neutral, dtype=torch.float64)})
        self._empty(constant)
        nothing = "it was ones" if constant.kind == "scale" else "it was zeros"
        why = f"folded into {', '.join(merged)}" if merged else nothing
        return FoldNote(name=name, kind=kind, folded=True, why=why)

    def _empty(self, constant: StaticConstant) -> None:
        self.traced.neutral[constant.result] = constant.moved
        self._emptied.append(constant)

    def _tensor(self, constant: StaticConstant) -> tuple[nn.Module, Tensor]:
        path, _, key = constant.path.rpartition(".")
        tensor = getattr(self.traced.modules[path], key)
        assert isinstance(tensor, Tensor)
        return self.traced.modules[path], tensor

    def _merged(self, constant: StaticConstant, value: Tensor) -> dict[str, dict[str, Tensor]] | str:
        """Layer -> its tensors with the constant in them, float64; or why it stays."""
        if constant.hindrance is not None:
            return constant.hindrance
        if not bool(value.isfinite().all()):
            return "it is not finite"
        reason = why_not_writable(self._tensor(constant)[1])
        if reason is not None:
            return f"it {reason}"
        merged = scale_merged if constant.kind == "scale" else addition_merged
        shape = self.traced.graph.nodes[constant.result].shape
        last = len(shape) - 1
        reasons = []
        for axis in [constant.axis] if constant.axis is not None else list(dict.fromkeys((min(1, last), last))):
            found = merged(self.traced, constant, axis, value.expand(shape[axis]) * constant.sign)
            if not isinstance(found, str):
                return found
            reasons.append(found)
        return reasons[0]

    def clear_(self, model: nn.Module) -> None:
        """Take constants that do nothing out of the model where nothing would miss them."""
        replacements: dict[nn.Module, nn.Module] = {}
        gone: dict[str, set[str]] = {}
        for constant in self._emptied:
            if constant.whole:
                module = self.traced.modules[constant.module]
                replacements[module] = nn.Identity().train(module.training)
            else:
                path, _, key = constant.path.rpartition(".")
                gone.setdefault(path, set()).add(key)
        for path, keys in gone.items():
            holder = self.traced.modules[path]
            together = _OPTIONAL.get(type_key(type(holder)), ())
            if together and all(key in keys or getattr(holder, key, None) is None for key in together):
                for key in together:
                    self.traced.ledger.drop_(holder, key)
        self.traced.ledger.replace_(model, replacements)
