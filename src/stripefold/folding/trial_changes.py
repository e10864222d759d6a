"""Changes to a model that can be taken back until all of them are made: modules replaced, merged numbers standing in.

While a plan is tried, new tensors stand in the places of the model's own, which nothing writes to. So the model runs
with the merged numbers, and can be put back as it was at every moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from stripefold.modules.float64_weights import Float64Weights, put
from stripefold.modules.modules import move_call_hooks, replace_modules


@dataclass(frozen=True)
class _Exchanged:
    """A tensor of the model's own that another one stands in for; None where the layer had none."""

    layer: nn.Module
    key: str
    own: Tensor | None
    dropped: bool = False


class Changes:
    """What was changed in one model, in order."""

    def __init__(self) -> None:
        self._made: list[_Exchanged | dict[nn.Module, nn.Module]] = []

    def install_(self, weights: Float64Weights) -> None:
        """Let merged numbers, rounded, stand in for the layers' own."""
        for layer, key, _ in list(weights.changed()):
            self._exchange_(layer, key, weights.rounded(layer, key))

    def drop_(self, dropped: Iterable[tuple[nn.Module, str]]) -> None:
        """Take parameters away from layers: ``None`` is in their places."""
        for layer, key in dropped:
            self._exchange_(layer, key, None, dropped=True)

    def replace_(self, model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
        """Put new modules where old ones are, with their hooks; returns the root."""
        for old, new in replacements.items():
            move_call_hooks(old, new)
        self._made.append(dict(replacements))
        return replace_modules(model, replacements)

    def mark(self) -> int:
        """The state that ``undo_`` can go back to."""
        return len(self._made)

    def undo_(self, model: nn.Module, to: int = 0) -> nn.Module:
        """Put everything back as it was, or as it was at a mark; returns the root."""
        while len(self._made) > to:
            change = self._made[-1]
            if isinstance(change, _Exchanged):
                put(change.layer, change.key, change.own)
            else:
                for old, new in change.items():
                    move_call_hooks(new, old)
                model = replace_modules(model, {new: old for old, new in change.items()})
            self._made.pop()
        return model

    def commit_(self, weights: Float64Weights) -> None:
        """Take the stand-ins away and write the merged numbers into the model's own tensors; modules stay replaced.

        Raises:
            FoldError: one of them cannot be written; nothing is then, and ``undo_`` puts the rest back.
        """
        installed = [each for each in self._made if isinstance(each, _Exchanged) and not each.dropped]
        standing = [getattr(each.layer, each.key) for each in installed]
        for each in reversed(installed):
            put(each.layer, each.key, each.own)
        try:
            weights.write_()
        except BaseException:
            for each, tensor in zip(installed, standing, strict=True):
                put(each.layer, each.key, tensor)
            raise
        self._made.clear()

    def _exchange_(self, layer: nn.Module, key: str, new: Tensor | None, *, dropped: bool = False) -> None:
        own = getattr(layer, key, None)
        self._made.append(_Exchanged(layer, key, own if isinstance(own, Tensor) else None, dropped))
        put(layer, key, new)
