"""What a call of ``bake`` asks for with ``settle=``: how the gates are brought to constants by training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stripefold.baking.finetune import Loss
from stripefold.errors import BakeError

SettleMethod = Literal["first", "ramp", "staged", "penalty", "asr"]
WAYS: tuple[SettleMethod, ...] = ("first", "ramp", "staged", "penalty", "asr")
Optimise = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Parameter groups, weights first and constants last -> an optimizer over them."""
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]
"""An optimizer -> a learning rate schedule of torch, which is stepped after every step."""
Divergence = Callable[[Any, Any], torch.Tensor]
"""(the model's output, that of the network as it was given) -> a scalar."""


@dataclass(frozen=True, kw_only=True)
class Settle:
    """A short training of all weights that ends with constant gates, which then bake without loss.

    Attributes:
        steps: optimiser steps; the data starts over where it ends.
        way: how a gate moves from v(x) to its trained constant c. "first": it is c from the first step on; "ramp":
            (1 - a) v(x) + a c, with a growing to 1; "staged": gate after gate, those in which a constant errs least
            first; "penalty": the deviation of v(x) from c is penalised until it is replaced by c; "asr": as "first",
            with c = excite(psi), the trained attention on a trained descriptor, in place of a free constant.
        over: share of the steps in which gates move; "first" and "asr" move them at once.
        penalty: weight of the penalty: of the squared deviation relative to the square of c, summed over the gates.
        lr: SGD's learning rate at the start (momentum 0.9, weight decay 1e-4); it falls to 0 along a half cosine.
        constants_rate: how many times that rate the constants have; they get no weight decay. Ten was better than one
            in ten of thirteen pairs of runs (benchmarks/settle).
        optimizer: an optimizer of your own in its place: groups -> torch.optim.Optimizer.
        schedule: a schedule of your own: optimizer -> a schedule of torch's, stepped after every step.
        data: (inputs, targets) batches; None takes the data given to ``bake``.
        loss: (output, targets) -> scalar; None is the cross-entropy of logits (N, classes) and class numbers.
        distill: share of the loss that is the divergence from the network as it was given; 1 needs no labels.
        divergence: (output, output as given) -> scalar; None is that of class probabilities for logits (N, classes),
            and the relative squared error of all floating-point tensors for any other output.
        autocast: torch.bfloat16 to train under autocast, or None.
        checkpoint: a file that the training goes on from if it is there; None: it can not go on.
        every: steps between two checkpoints.
        seed: decides what is drawn, by the model and by a data loader in this process.
    """

    steps: int = 1000
    way: SettleMethod = "first"
    over: float = 0.5
    penalty: float = 1.0
    lr: float = 1e-2
    constants_rate: float = 10.0
    optimizer: Optimise | None = None
    schedule: SchedulerFactory | None = None
    data: Any = None
    loss: Loss | None = None
    distill: float = 0.0
    divergence: Divergence | None = None
    autocast: torch.dtype | None = None
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BakeError(f"Settle: {name} must be an integer of at least 1, got {value!r}")
        for name in ("lr", "constants_rate", "penalty"):
            if not _is_number(value := getattr(self, name)) or value <= 0:
                raise BakeError(f"Settle: {name} must be a positive finite number, got {value!r}")
        if self.way not in WAYS:
            raise BakeError(f"Settle: way={self.way!r}: choose one of {', '.join(map(repr, WAYS))}")
        if not _is_number(self.over) or not 0 < self.over <= 1:
            raise BakeError(f"Settle: over must be a share of the steps above 0 and at most 1, got {self.over!r}")
        if not _is_number(self.distill) or not 0 <= self.distill <= 1:
            raise BakeError(f"Settle: distill must be a share of the loss from 0 to 1, got {self.distill!r}")
        if self.autocast not in (None, torch.bfloat16):
            raise BakeError(
                f"Settle: autocast={self.autocast!r}: torch.bfloat16, or None (float16 needs scaled losses)"
            )
        self._check_functions()

    def _check_functions(self) -> None:
        for name in ("optimizer", "schedule", "loss", "divergence"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise BakeError(f"Settle: {name} is {type(value).__name__}: give a function")
        if self.divergence is not None and not self.distill:
            raise BakeError(
                "Settle: divergence= is given, but distill=0 uses none: give distill=, its share of the loss"
            )
        if self.loss is not None and self.distill == 1:
            raise BakeError("Settle: loss= is given, but distill=1 uses none: give a smaller share, or leave out loss")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
