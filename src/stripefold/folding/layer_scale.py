"""Static per-channel scales, folded into the layers that make what they scale: nothing is multiplied any more.

``g (.) (W x + b) = (g (.) W) x + g (.) b``, along every path that the trace shows to commute with the scale. A module
that is nothing but the scale leaves an Identity; a parameter of a block becomes None where that block is known to ask
for it, else ones.

Source: Touvron et al. 2021, "Going deeper with Image Transformers" (CaiT), equation 4: LayerScale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stripefold.folding.fuse_parts import misfit
from stripefold.folding.ledger import Ledger
from stripefold.folding.rule import rule_for, type_key
from stripefold.folding.sides import LayerSides, scale_of
from stripefold.folding.static_scales import StaticScale, is_step, static_scales
from stripefold.surgery.example import Example
from stripefold.surgery.foldable import FoldNote
from stripefold.surgery.graph import Graph
from stripefold.surgery.modules import move_call_hooks, replace_modules
from stripefold.surgery.scale_paths import Target, backward, forward, unused
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


def fold_scales_(model: nn.Module, example: Example, ledger: Ledger) -> list[FoldNote]:
    """Fold static per-channel scales in place, where that is exact.

    Args:
        model: a plain (folded) model.
        example: input for the trace.
        ledger: what earlier steps have merged; learns what is merged here.

    Returns:
        One row per scale: folded into what, or kept and why. A scale of ones is left alone.

    Raises:
        TraceError: the model does not run on the example.
    """
    graph = trace(model, example, is_layer=is_step).graph
    found = list(static_scales(graph, model))
    folding = _Folding(model, graph, ledger) if found else None
    notes = [folding.fold_(scale) for scale in found] if folding else []
    if folding:
        folding.clear_()
    return [note for note in notes if note is not None]


class _Folding:
    """The state of folding the scales of one traced model."""

    def __init__(self, model: nn.Module, graph: Graph, ledger: Ledger) -> None:
        self._model, self._graph, self._ledger = model, graph, ledger
        self._modules = dict(model.named_modules())
        self._sides = LayerSides(model)
        self._dead = unused(graph, {})
        self._ones: list[StaticScale] = []

    def fold_(self, scale: StaticScale) -> FoldNote | None:
        """Fold one scale; the row that tells of it, or None for a scale of ones that is no module."""
        holder, tensor = self._tensor(scale)
        v = self._ledger.read(tensor).flatten()
        trivial = bool((v == 1).all()) and scale.shared is None
        if trivial and not scale.whole:
            self._ones.append(scale)
            return None
        merged = {} if trivial else self._merged(scale, v)
        kind = type(self._modules[scale.module]).__name__ if scale.whole else f"scale of {type(holder).__name__}"
        name = scale.module if scale.whole else scale.path
        if isinstance(merged, str):
            return FoldNote(name=name, kind=kind, folded=False, why=merged)
        for layer, tensors in merged.items():
            self._ledger.write_(self._modules[layer], tensors)
        with torch.no_grad():
            tensor.fill_(1.0)
        self._ledger.note(tensor, torch.ones_like(tensor, dtype=torch.float64))
        self._ones.append(scale)
        why = f"folded into {', '.join(merged)}" if merged else "it was ones"
        return FoldNote(name=name, kind=kind, folded=True, why=why)

    def _tensor(self, scale: StaticScale) -> tuple[nn.Module, Tensor]:
        path, _, key = scale.path.rpartition(".")
        tensor = getattr(self._modules[path], key)
        assert isinstance(tensor, Tensor)
        return self._modules[path], tensor

    def _merged(self, scale: StaticScale, v: Tensor) -> dict[str, dict[str, Tensor]] | str:
        """Layer -> its tensors with the scale in them, float64; or why the scale stays."""
        if scale.shared is not None:
            return scale.shared
        if not bool(v.isfinite().all()):
            return "it is not finite"
        rank = len(self._graph.nodes[scale.product].shape)
        reasons = []
        for axis in [scale.axis] if scale.axis is not None else list(dict.fromkeys((min(1, rank - 1), rank - 1))):
            whole = v if scale.axis is not None else v.expand(self._graph.nodes[scale.product].shape[axis])
            for target in self._targets(scale, axis):
                found = self._written(target, whole) if isinstance(target, Target) else target
                if not isinstance(found, str):
                    return found
                reasons.append(found)
        return reasons[0]

    def _targets(self, scale: StaticScale, axis: int) -> list[Target | str]:
        """Where the scale may go: against the flow; and with it, where a module disappears by that.

        A parameter that would stay as ones is not worth the surprise of other layers changing behind it: the gain of
        a normalisation that has no rule is such a one.
        """
        graph, sides, dead = self._graph, self._sides, self._dead
        found = [backward(graph, scale.scaled, axis, product=scale.product, sides=sides, ignoring=dead)]
        if scale.whole:
            found.append(forward(graph, scale.product, axis, sides=sides, ignoring=dead))
        return [each if isinstance(each, Target) else each.why for each in found]

    def _written(self, target: Target, v: Tensor) -> dict[str, dict[str, Tensor]] | str:
        """Layer -> its tensors with the parts of the target in them, float64; or why not."""
        if target.nonnegative and bool((v < 0).any()):
            return "it has negative entries, and a rectifier or a maximum lies between it and the layer"
        merged: dict[str, dict[str, Tensor]] = {}
        for part in target.parts:
            layer = self._modules[part.layer]
            rule = rule_for(layer)
            if rule is None or part.layer in merged:
                return f"{part.layer} would take it twice"
            factor = scale_of(part, v)
            held = {
                key: getattr(layer, key, None) for key in (rule.output if part.side == "output" else rule.input or {})
            }
            functions = rule.output if part.side == "output" else rule.input or {}
            merged[part.layer] = {
                key: functions[key](layer, self._ledger.read(tensor), factor.to(tensor.device))
                for key, tensor in held.items()
                if tensor is not None
            }
            reason = misfit(layer, rule, merged[part.layer])
            if reason is not None:
                return reason
        return merged

    def clear_(self) -> None:
        """Take scales of ones out of the model where nothing would miss them."""
        replacements: dict[nn.Module, nn.Module] = {}
        gone: dict[str, set[str]] = {}
        for scale in self._ones:
            if scale.whole:
                module = self._modules[scale.module]
                replacements[module] = nn.Identity().train(module.training)
                move_call_hooks(module, replacements[module])
            else:
                path, _, key = scale.path.rpartition(".")
                gone.setdefault(path, set()).add(key)
        for path, keys in gone.items():
            holder = self._modules[path]
            together = _OPTIONAL.get(type_key(type(holder)), ())
            if together and all(key in keys or getattr(holder, key, None) is None for key in together):
                holder._parameters.update(dict.fromkeys(together))
        replace_modules(self._model, replacements)
