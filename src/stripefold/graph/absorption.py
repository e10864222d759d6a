"""Types of propagation: what a layer accepts, what it absorbs, where a change goes in the end, and why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stripefold.graph.given import Given
from stripefold.graph.operation_table import Change, StoppedError
from stripefold.graph.patterns import NOT_SCALED

Side = Literal["output", "input"]


@dataclass(frozen=True, kw_only=True)
class Accepts:
    """A layer's side that takes a change.

    Attributes:
        axis: its channel axis, 1 or -1.
        activated: an activation follows inside the layer, so that what is scaled is not the output itself.
        eval_only: exact in evaluation mode only (batch statistics undo a scale of a BatchNorm's input).
        given: what a call may be given for it to hold.
    """

    axis: int
    given: Given
    activated: bool = False
    eval_only: bool = False


Accept = Callable[[str, Side, Change], Accepts | str]
"""``(layer's path, side, change) -> how it takes it there, or why it cannot``."""


@dataclass(frozen=True, kw_only=True)
class Absorption:
    """One layer that takes a change, or a part of it.

    Attributes:
        layer: dotted path.
        side: which of its sides.
        index: per channel of that side, the entry of the change that it takes, or ``NOT_SCALED``.
        change: a scale or a shift.
        factor: what a shift is multiplied by on the way.
    """

    layer: str
    side: Side
    index: tuple[int, ...]
    change: Change = "scale"
    factor: float = 1.0

    def taken(self, vector: Tensor) -> Tensor:
        """What the layer takes of a change (C,), float64: its entries, and what does nothing elsewhere."""
        index = torch.tensor(self.index, device=vector.device)
        untouched = index == NOT_SCALED
        chosen = vector.double()[index.masked_fill(untouched, 0)]
        if self.change == "scale":
            return torch.where(untouched, 1.0, chosen)
        return torch.where(untouched, 0.0, chosen * self.factor)


@dataclass(frozen=True, kw_only=True)
class FoldTarget:
    """Where a change goes: all of the parts together, exactly.

    Attributes:
        parts: the layers.
        nonnegative: exact only where no entry of a scale is negative (a ReLU or a max pooling lies between).
        eval_only: exact in evaluation mode only.
    """

    parts: tuple[Absorption, ...]
    nonnegative: bool
    eval_only: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, each once, in order."""
        return tuple(dict.fromkeys(part.layer for part in self.parts))


@dataclass(frozen=True)
class Refusal:
    """Why a change cannot go there.

    Attributes:
        why: the reason, in words.
        unseen: it is a module that did not run on the examples: more of them may show a way.
    """

    why: str
    unseen: bool = False

    @classmethod
    def at(cls, stopped: StoppedError) -> Refusal:
        """What a walk that was stopped says."""
        return cls(stopped.why, unseen=stopped.unseen)
