"""Float64 copies of merged weights: one record of every tensor that folding changes, written and rounded once.

A LayerScale goes into a layer, then a BatchNorm does: in bfloat16 two roundings would be seen. Until ``write_`` the
model's own tensors hold what they held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from stripefold.algebra.rounding import overflows, underflows
from stripefold.graph.absorption import Absorption
from stripefold.layers.rule import rule_for
from stripefold.layers.shift import shift_key
from stripefold.layers.substitute import substituted
from stripefold.modules.writable import check_writable


class Float64Weights:
    """What the tensors of a model are before rounding, where merging has made them."""

    def __init__(self) -> None:
        self._exact: dict[nn.Module, dict[str, Tensor]] = {}
        self._written: dict[tuple[nn.Module, str], None] = {}

    def fork(self) -> Float64Weights:
        """A record of its own that starts from this one: for what may turn out not to fit."""
        other = Float64Weights()
        other._exact = dict(self._exact)
        other._written = dict(self._written)
        return other

    def read(self, layer: nn.Module, key: str) -> Tensor | None:
        """A tensor of a layer in float64, or complex128, as exactly as it is known; None where there is none."""
        known = self._exact.get(layer, {}).get(key)
        own = getattr(layer, key, None)
        if known is not None or not isinstance(own, Tensor):
            return known
        return own.detach().to(torch.complex128 if own.is_complex() else torch.float64)

    def view(self, layer: nn.Module) -> nn.Module:
        """A view of a layer that has the merged numbers as its tensors, for what a rule reads of it."""
        return substituted(layer, self._exact.get(layer, {}))

    def note(self, layer: nn.Module, key: str, exact: Tensor) -> None:
        """Say what a tensor was before it was rounded."""
        self._exact[layer] = {**self._exact.get(layer, {}), key: exact.detach()}  # forks share what is there

    def set(self, layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Let a layer's tensors (attribute -> float64) be others; a bias that it has not yet becomes one of it."""
        for key, exact in tensors.items():
            self.note(layer, key, exact)
            self._written[layer, key] = None

    @torch.no_grad()
    def absorb(self, layer: nn.Module, part: Absorption, vector: Tensor) -> None:
        """Let a layer take its part of a change.

        Args:
            layer: it accepts it (``layers.accepts``).
            part: which side takes which entries.
            vector: the change, shape (C,).
        """
        rule, view, taken = rule_for(layer), self.view(layer), part.taken(vector)
        assert rule is not None  # it accepts
        if part.change == "scale":
            found = {key: self.read(layer, key) for key in rule.side(part.side)}
            functions = rule.side(part.side)
            self.set(
                layer, {k: functions[k](view, own, taken.to(own.device)) for k, own in found.items() if own is not None}
            )
            return
        if part.side == "input":
            for key, function in (rule.input_shift or {}).items():
                self.set(layer, {key: function(view, self.read(layer, key), taken.to(_like(layer, key).device))})
            return
        key = shift_key(rule) or ""
        own = self.read(layer, key)
        taken = taken.to(_like(layer, key).device)
        self.set(layer, {key: taken if own is None else own + taken.view(own.shape)})

    def forget(self, layer: nn.Module, key: str) -> None:
        """Write nothing into a tensor after all."""
        self._written.pop((layer, key), None)

    def changed(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """What is to be written: (layer, attribute, float64 tensor)."""
        return ((layer, key, self._exact[layer][key]) for layer, key in self._written)

    def why_not_fitting(self, before: Float64Weights) -> str | None:
        """Why what was merged since does not fit the tensors' types, or None: too large, or too small to be kept."""
        for layer, key, exact in self.changed():
            if before._exact.get(layer, {}).get(key) is exact:
                continue
            dtype = _like(layer, key).dtype
            name = str(dtype).removeprefix("torch.")
            if overflows(exact, dtype):
                return f"the merged weights would overflow {name}"
            if not _is_sum(layer, key) and underflows(exact, dtype):
                return f"the merged weights would underflow {name}"
        return None

    def overflowing(self) -> tuple[nn.Module, str] | None:
        """The first tensor that is finite now and would not be once it is written, as (layer, attribute)."""
        for layer, key, exact in self.changed():
            own = getattr(layer, key, None)
            if overflows(exact, _like(layer, key).dtype, own if isinstance(own, Tensor) else None):
                return layer, key
        return None

    def rounded(self, layer: nn.Module, key: str) -> Tensor:
        """A new tensor in the place of a layer's own, with its type, layout and flags."""
        own, like = getattr(layer, key, None), _like(layer, key)
        new = self._exact[layer][key].to(like.dtype)
        if own is not None:
            new = torch.empty_like(own, memory_format=torch.preserve_format).copy_(new.view(own.shape))
        if own is None or isinstance(own, nn.Parameter):
            new = nn.Parameter(new, requires_grad=like.requires_grad)
        return new

    @torch.no_grad()
    def write_(self) -> None:
        """Write every merged number into the model's own tensors, after a look at all of them.

        Raises:
            FoldError: one of them cannot be written; nothing is then.
        """
        written = [(layer, key, exact, getattr(layer, key, None)) for layer, key, exact in self.changed()]
        check_writable((f"{type(layer).__name__}.{key}", own) for layer, key, _, own in written if own is not None)
        for layer, key, exact, own in written:
            if own is None:
                put(layer, key, self.rounded(layer, key))
            else:
                own.copy_(exact.view(own.shape))
        self._written.clear()


def why_overflowing(weights: Float64Weights, paths: Mapping[nn.Module, str]) -> str | None:
    """What of merged numbers is too large to be written, in words that say what to do; or None."""
    found = weights.overflowing()
    if found is None:
        return None
    layer, key = found
    return (
        f"cannot fold into {paths[layer]!r}: its {key} overflows {_like(layer, key).dtype}. Fold in a wider dtype: "
        "model.float()"
    )


def _like(layer: nn.Module, key: str) -> Tensor:
    """The tensor whose type and device one of a layer has, or would have."""
    own = getattr(layer, key, None)
    rule = rule_for(layer)
    like = getattr(layer, "weight" if rule is None else rule.required, None) if own is None else own
    assert isinstance(like, Tensor)
    return like


def _is_sum(layer: nn.Module, key: str) -> bool:
    """Whether a tensor is added, so that a small one is no loss."""
    rule = rule_for(layer)
    return rule is not None and (key == shift_key(rule) or key not in rule.output)


def put(layer: nn.Module, key: str, tensor: Tensor | None) -> None:
    """Set a parameter, a buffer or a plain attribute, without what ``nn.Module.__setattr__`` makes of it."""
    if key in layer._buffers:
        layer._buffers[key] = tensor
    elif key in layer._parameters or isinstance(tensor, nn.Parameter):
        layer._parameters[key] = tensor  # type: ignore[assignment]
    else:
        layer.__dict__[key] = tensor
