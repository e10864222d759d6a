"""The float64 record of every tensor that merging changes, and the changes themselves until all of them are made.

While merging goes on, new tensors and modules stand in the places of the model's own, which nothing writes to. So the
model runs at every moment with the merged numbers, and can be put back as it was at every moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stripefold.folding.writable import check_writable
from stripefold.modules.modules import move_call_hooks, replace_modules


@dataclass(frozen=True)
class _Exchanged:
    """A tensor of the model's own that another one stands in for; None where the layer had none."""

    layer: nn.Module
    key: str
    own: Tensor | None


class Ledger:
    """What the tensors of a model are before rounding, where merging has made them.

    A LayerScale goes into a layer, then a BatchNorm does: in bfloat16 two roundings would be seen.
    """

    def __init__(self) -> None:
        self._exact: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself, so that its id stays its own
        self._changes: list[_Exchanged | dict[nn.Module, nn.Module]] = []

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor in float64, or complex128, as exactly as it is known."""
        if id(tensor) in self._exact:
            return self._exact[id(tensor)][1]
        return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)

    def note(self, tensor: Tensor, exact: Tensor) -> None:
        """Say what a tensor was before it was rounded."""
        if tensor.dtype != torch.float64:
            self._exact[id(tensor)] = (tensor, exact)

    @torch.no_grad()
    def write_(self, layer: nn.Module, merged: Mapping[str, Tensor]) -> None:
        """Let merged numbers, rounded, stand in for a layer's own; a bias that it has not yet becomes one of it.

        Args:
            layer: the layer.
            merged: attribute -> float64 tensor.
        """
        for key, exact in merged.items():
            own = getattr(layer, key, None)
            like = layer._parameters["weight"] if own is None else own
            assert like is not None
            new = exact.to(like.dtype)
            if own is not None:
                new = torch.empty_like(own, memory_format=torch.preserve_format).copy_(new.view(own.shape))
            if own is None or isinstance(own, nn.Parameter):
                new = nn.Parameter(new, requires_grad=like.requires_grad)
            self._exchange(layer, key, new)
            self.note(new, exact)

    def drop_(self, layer: nn.Module, key: str) -> None:
        """Take a parameter away from a layer: ``None`` is in its place."""
        self._exchange(layer, key, None)

    def replace_(self, model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
        """Put new modules where old ones are, with their hooks; returns the root."""
        for old, new in replacements.items():
            move_call_hooks(old, new)
        self._changes.append(dict(replacements))
        return replace_modules(model, replacements)

    def mark(self) -> int:
        """The state that ``undo_`` can go back to."""
        return len(self._changes)

    def undo_(self, model: nn.Module, to: int = 0) -> nn.Module:
        """Put everything back as it was, or as it was at a mark; returns the root."""
        while len(self._changes) > to:
            change = self._changes[-1]
            if isinstance(change, _Exchanged):
                _put(change.layer, change.key, change.own)
            else:
                for old, new in change.items():
                    move_call_hooks(new, old)
                model = replace_modules(model, {new: old for old, new in change.items()})
            self._changes.pop()
        if not to:
            self._exact.clear()
        return model

    def commit_(self) -> None:
        """Write the merged numbers into the model's own tensors, after a look at all of them.

        Raises:
            FoldError: one of them cannot be written; nothing is then.
        """
        written = [
            (each, each.own, new)
            for each in self._first_exchanges()
            if each.own is not None and (new := getattr(each.layer, each.key)) is not None
        ]
        check_writable((f"{type(each.layer).__name__}.{each.key}", own) for each, own, _ in written)
        with torch.no_grad():
            for each, own, new in written:
                own.copy_(new)
                _put(each.layer, each.key, own)
        self._changes.clear()

    def _first_exchanges(self) -> list[_Exchanged]:
        """One entry for each tensor of the model's own: what was there before the first change."""
        found: dict[tuple[int, str], _Exchanged] = {}
        for change in self._changes:
            if isinstance(change, _Exchanged):
                found.setdefault((id(change.layer), change.key), change)
        return list(found.values())

    def _exchange(self, layer: nn.Module, key: str, new: Tensor | None) -> None:
        own = getattr(layer, key, None)
        self._changes.append(_Exchanged(layer, key, own if isinstance(own, Tensor) else None))
        _put(layer, key, new)


def _put(layer: nn.Module, key: str, tensor: Tensor | None) -> None:
    """Set a parameter, a buffer or a plain attribute, without what ``nn.Module.__setattr__`` makes of it."""
    if key in layer._buffers:
        layer._buffers[key] = tensor
    elif key in layer._parameters or isinstance(tensor, nn.Parameter):
        layer._parameters[key] = tensor  # type: ignore[assignment]
    else:
        layer.__dict__[key] = tensor
