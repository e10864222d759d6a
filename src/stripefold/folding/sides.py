"""The two sides of a model's layers: who can take a per-channel scale, and writing it into several layers at once.

A scale of the output goes through the rule's output side, a scale of the input through its input side; where one layer
takes both, or several of one kind, all products are formed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stripefold.errors import FoldError
from stripefold.folding.adapters import under_adapters
from stripefold.folding.writable import why_not_writable
from stripefold.graph.scale_parts import Part, Side, Takes
from stripefold.layers.probe import probe
from stripefold.layers.refusal import altered, refusal, tied_to
from stripefold.layers.rule import Rule, rule_for
from stripefold.modules.foldable import Foldable
from stripefold.modules.modes import kept_in_training
from stripefold.modules.modules import tensor_owners


class LayerSides:
    """Answers for one model which layer takes a scale on which side (a ``Sides`` of ``graph.scale_paths``).

    Args:
        model: only read; ask again with a new object once it has changed.
        training: the sides must be exact in training mode, too (the input side of a BatchNorm is not).
    """

    def __init__(self, model: nn.Module, *, training: bool = False) -> None:
        self._modules = dict(model.named_modules())
        self._owners = tensor_owners(model)
        self._training = training
        self._kept = kept_in_training(model)
        self._adapted = under_adapters(model)
        self._known: dict[tuple[str, Side], Takes | str] = {}

    def __call__(self, name: str, side: Side) -> Takes | str:
        """How the layer of this path takes a scale on this side, or why it cannot."""
        if (name, side) not in self._known:
            self._known[name, side] = self._judged(name, side)
        return self._known[name, side]

    def _judged(self, name: str, side: Side) -> Takes | str:
        layer = self._modules[name]
        rule = rule_for(layer)
        if rule is None or isinstance(layer, Foldable):
            return refusal(layer) or "it carries gates of its own"
        reason = self._adapted.get(layer)
        reason = reason or (refusal(layer) if side == "output" else self._input_refusal(layer, rule))
        reason = reason or tied_to(layer, rule, name, self._owners, side) or unwritable(layer, rule, side)
        if reason is not None:
            return reason
        try:
            probe(layer, rule, side)
        except FoldError as error:
            return str(error)
        if side == "output":
            return Takes(axis=rule.axis, activated=not rule.commutes and not _lets_pass(layer))
        axis = rule.axis if rule.input_axis is None else rule.input_axis
        return Takes(axis=axis, eval_only=rule.input_eval_only)

    def _input_refusal(self, layer: nn.Module, rule: Rule) -> str | None:
        if rule.input is None:
            return f"{type(layer).__name__} has no input side: a scale of its input does not fold into it"
        if rule.input_eval_only and (self._training or layer in self._kept):
            return "in training its batch statistics undo a scale of its input"
        return altered(layer) or rule.input_refuse(layer) or (refusal(layer) if rule.norm else None)


def _lets_pass(layer: nn.Module) -> bool:
    """Whether a layer that may carry an activation carries none: all of its parts are identities."""
    parts = list(layer.children())
    return bool(parts) and all(isinstance(part, nn.Identity) for part in parts)


def unwritable(layer: nn.Module, rule: Rule, side: Side) -> str | None:
    """Why a tensor of this side cannot be overwritten in place, or None: nothing may fail halfway."""
    for key in rule.side(side):
        tensor = getattr(layer, key, None)
        reason = why_not_writable(tensor) if isinstance(tensor, Tensor) else None
        if reason is not None:
            return f"its {key!r} {reason}"
    return None


def scale_of(part: Part, v: Tensor) -> Tensor:
    """The scale of one part's channels, float64: the entries of ``v`` (C,) it asks for, and 1 elsewhere."""
    index = torch.tensor(part.index, device=v.device)
    return torch.where(index < 0, 1.0, v.double()[index.clamp(min=0)])


@dataclass
class ScaleWriter:
    """Collects the scales of layers' sides, checks them all, then writes them.

    Attributes:
        modules: dotted path -> layer.
    """

    modules: Mapping[str, nn.Module]
    _scales: dict[str, dict[Side, Tensor]] = field(default_factory=dict)

    def add(self, part: Part, v: Tensor) -> None:
        """Note that a part takes the scale ``v`` (C,); scales of one side multiply."""
        sides = self._scales.setdefault(part.layer, {})
        scale = scale_of(part, v)
        sides[part.side] = scale if part.side not in sides else sides[part.side] * scale

    def check(self) -> None:
        """Form every product and see that it is finite where the tensor is.

        Raises:
            FoldError: a product overflows its tensor's type.
        """
        for name in self._scales:
            for key, (tensor, scaled) in self._products(name).items():
                if bool(tensor.isfinite().all()) and not bool(scaled.to(tensor.dtype).isfinite().all()):
                    raise FoldError(
                        f"cannot fold into {name!r}: its {key} overflows {tensor.dtype}. Fold in a wider dtype: "
                        "model.float()"
                    )

    def write_(self) -> None:
        """Overwrite the layers' tensors; call ``check`` first."""
        with torch.no_grad():
            for name in self._scales:
                for tensor, scaled in self._products(name).values():
                    tensor.copy_(scaled)

    @torch.no_grad()
    def _products(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Attribute -> (the layer's tensor, what it becomes in float64): the input side first, as rules read it."""
        layer = self.modules[name]
        rule = rule_for(layer)
        assert rule is not None  # LayerSides has refused it otherwise
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for side, functions in (("input", rule.input), ("output", rule.output)):
            scale = self._scales[name].get(side)  # type: ignore[call-overload]
            for key, function in (functions or {}).items():
                tensor = getattr(layer, key, None) if scale is not None else None
                if isinstance(tensor, Tensor):
                    before = found.get(key, (tensor, tensor.double()))[1]
                    found[key] = (tensor, function(layer, before, scale.to(tensor.device)))
        return found


def layers_of(parts: Iterable[Part]) -> tuple[str, ...]:
    """The layers of some parts, each once, in order."""
    return tuple(dict.fromkeys(part.layer for part in parts))
