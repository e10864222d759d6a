"""Static constants, folded into the layers that make what they scale or shift: nothing is multiplied or added any more.

A module that is nothing but the constant leaves an Identity; a parameter of a block becomes None where that block is
known to ask for it, else ones (a scale) or zeros (an addition). What is merged is neutral from then on, so that others
pass it: a scale behind an addition, an addition behind a scale.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.folding.layer_addition import addition_merged
from stripefold.folding.layer_scale import scale_merged
from stripefold.folding.ledger import Ledger
from stripefold.folding.static_constants import StaticConstant, is_step, static_constants
from stripefold.folding.traced import Traced
from stripefold.folding.writable import why_not_writable
from stripefold.graph.trace import trace
from stripefold.layers.rule import type_key
from stripefold.modules.example import Example
from stripefold.modules.foldable import FoldNote

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


def fold_constants_(model: nn.Module, example: Example, ledger: Ledger) -> tuple[list[FoldNote], tuple[str, ...]]:
    """Fold static per-channel scales and additions in place, where that is exact.

    Args:
        model: a plain (folded) model.
        example: input for the trace.
        ledger: what earlier steps have merged; learns what is merged here.

    Returns:
        One row per constant: folded into what, or kept and why, but for a parameter of ones (zeros), which is left
        alone; and what did not run on the example.

    Raises:
        TraceError: the model does not run on the example.
    """
    recorded = trace(model, example, is_layer=is_step)
    graphs = recorded.graphs
    found = _over_runs([list(static_constants(graph, model)) for graph in graphs])
    if not found:
        return [], recorded.unseen
    folding = _Folding([Traced(model, graph, ledger) for graph in graphs])
    left = found
    notes: dict[_Constant, FoldNote | None] = {}
    while left:
        notes |= {constant: folding.fold_(constant) for constant in left}
        before, left = left, [constant for constant in left if not folding.is_folded(constant)]
        if len(left) == len(before):
            break
    folding.clear_(model)
    return [note for note in (notes[constant] for constant in found) if note is not None], recorded.unseen


@dataclass(frozen=True)
class _Constant:
    """One constant as it occurs in the runs: (which run, what it is there)."""

    runs: tuple[tuple[int, StaticConstant], ...]

    @property
    def first(self) -> StaticConstant:
        """What it is in the first run in which it occurs."""
        return self.runs[0][1]


def _over_runs(found: list[list[StaticConstant]]) -> list[_Constant]:
    """The same constants of all runs together, in the order of the first."""
    grouped: dict[tuple[str, str, int], list[tuple[int, StaticConstant]]] = {}
    for run, constants in enumerate(found):
        times: Counter[tuple[str, str]] = Counter()
        for constant in constants:
            key = constant.path, constant.kind
            grouped.setdefault((*key, times[key]), []).append((run, constant))
            times[key] += 1
    return [_Constant(tuple(runs)) for runs in grouped.values()]


class _Folding:
    """The state of folding the constants of one traced model, one trace for each run."""

    def __init__(self, runs: list[Traced]) -> None:
        self.runs = runs
        self.traced = runs[0]  # what is known of the model itself is the same in all
        self._emptied: list[StaticConstant] = []

    def is_folded(self, constant: _Constant) -> bool:
        """Whether it does nothing any more."""
        return all(each.result in self.runs[run].neutral for run, each in constant.runs)

    def fold_(self, everywhere: _Constant) -> FoldNote | None:
        """Fold one constant; the row that tells of it, or None for a parameter that does nothing."""
        constant = everywhere.first
        holder, tensor = self._tensor(constant)
        neutral = _NEUTRAL[constant.kind]
        value = self.traced.ledger.read(tensor).flatten()
        hindrance = next((each.hindrance for _, each in everywhere.runs if each.hindrance is not None), None)
        if tensor.is_complex():  # which makes the map complex as well, even where it is ones
            hindrance = f"it is complex ({tensor.dtype}), and only real numbers are folded"
        trivial = bool((value == neutral).all()) and hindrance is None
        if trivial and not constant.whole:
            self._empty(everywhere)
            return None
        merged = {} if trivial else hindrance or self._merged(everywhere, value)
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
        self._empty(everywhere)
        nothing = "it was ones" if constant.kind == "scale" else "it was zeros"
        why = f"folded into {', '.join(merged)}" if merged else nothing
        return FoldNote(name=name, kind=kind, folded=True, why=why)

    def _empty(self, constant: _Constant) -> None:
        for run, each in constant.runs:
            self.runs[run].neutral[each.result] = each.moved
        self._emptied.append(constant.first)

    def _tensor(self, constant: StaticConstant) -> tuple[nn.Module, Tensor]:
        path, _, key = constant.path.rpartition(".")
        tensor = getattr(self.traced.modules[path], key)
        assert isinstance(tensor, Tensor)
        return self.traced.modules[path], tensor

    def _merged(self, constant: _Constant, value: Tensor) -> dict[str, dict[str, Tensor]] | str:
        """Layer -> its tensors with the constant in them, float64, the same in all runs; or why it stays."""
        merged: dict[str, dict[str, Tensor]] = {}
        for number, (run, each) in enumerate(constant.runs):
            found = self._merged_in(self.runs[run], each, value)
            if isinstance(found, str):
                return found
            if number and not _same(found, merged):
                return f"it would go into {', '.join(merged)} on one example and into {', '.join(found)} on another"
            merged = found
        without = [run for k, run in enumerate(self.runs) if k not in {k for k, _ in constant.runs}]
        used = {call.name for run in without for call in run.graph.calls}
        other = next((layer for layer in merged if layer in used), None)
        return merged if other is None else f"{other} runs without it on another example"

    def _merged_in(self, traced: Traced, constant: StaticConstant, value: Tensor) -> dict[str, dict[str, Tensor]] | str:
        if not bool(value.isfinite().all()):
            return "it is not finite"
        reason = why_not_writable(self._tensor(constant)[1])
        if reason is not None:
            return f"it {reason}"
        merged = scale_merged if constant.kind == "scale" else addition_merged
        shape = traced.graph.nodes[constant.result].shape
        last = len(shape) - 1
        reasons = []
        for axis in [constant.axis] if constant.axis is not None else list(dict.fromkeys((min(1, last), last))):
            found = merged(traced, constant, axis, value.expand(shape[axis]) * constant.sign)
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


def _same(first: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    """Whether two runs say that the same numbers go into the same layers."""
    if first.keys() != other.keys():
        return False
    return all(
        first[layer].keys() == other[layer].keys()
        and all(torch.equal(first[layer][key], other[layer][key]) for key in first[layer])
        for layer in first
    )
