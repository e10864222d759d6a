"""A short training of the constants alone, before they disappear into the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.baking.batches import Batches
from stripefold.baking.metric import logits_of
from stripefold.errors import BakeError
from stripefold.modules.example import run_example
from stripefold.modules.modules import first_parameter
from stripefold.stripe.batches import Batch

Loss = Callable[[Any, Tensor], Tensor]
"""(the model's output, labels) -> a scalar."""
Override = Callable[[Mapping[str, Tensor]], AbstractContextManager[Any]]
"""Puts constants (C,) in the gates' place while the context is open."""


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """How the constants are trained; every other parameter, and BatchNorm's statistics, stay as they are.

    Attributes:
        steps: optimiser steps; the data starts over where it ends.
        lr: Adam's learning rate at the start, in units of the gate; it falls to 0 along a half cosine.
        data: (inputs, labels) batches, labels (N,) class numbers; None takes the data given to ``bake``.
        loss: (output, labels) -> scalar; None is the cross-entropy of logits (N, classes).
    """

    steps: int = 200
    lr: float = 1e-2
    data: Any = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise BakeError(f"FineTune: steps must be an integer of at least 1, got {self.steps!r}")
        if not isinstance(self.lr, (int, float)) or not math.isfinite(self.lr) or self.lr <= 0:
            raise BakeError(f"FineTune: lr must be a positive finite number, got {self.lr!r}")


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """The default loss, on logits (N, classes) and class numbers (N,)."""
    return F.cross_entropy(logits_of(output).float(), labels)


def finetune(
    model: nn.Module,
    constants: Mapping[str, Tensor],
    override: Override,
    options: FineTune,
    *,
    batches: Batches,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Train constants and return them; the model's own parameters get no gradient.

    A constant that is not negative stays so, because where it folds may depend on that (through a ReLU, say).

    Args:
        model: in evaluation mode.
        constants: gate -> v (C,), the start.
        override: puts such constants into the model.
        options: how.
        batches: with labels.
        progress: called with the number of steps done.

    Returns:
        gate -> v (C,), float64 on the CPU.

    Raises:
        BakeError: a batch without labels, or a loss that is not finite.
    """
    like = first_parameter(model)
    device = torch.device("cpu") if like is None else like.device
    trained = {name: v.to(device, torch.float32).clone().requires_grad_() for name, v in constants.items()}
    floors = {name: v.to(device) >= 0 for name, v in constants.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    loss_of = options.loss or cross_entropy
    with override(trained), torch.enable_grad():
        for step, batch in enumerate(_endless(batches, options.steps), start=1):
            targets = targets_for(batch, options.loss, device, f"finetune: {batches.name}")
            loss = check_loss(loss_of(run_example(model, batch.inputs), targets), "finetune", "the gates")
            if not bool(loss.isfinite()):
                raise BakeError(
                    f"finetune: the loss is {loss.item()} at step {step}: give a lower lr, or look at the data"
                )
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for v, gradient in zip(trained.values(), gradients, strict=True):
                v.grad = gradient
            optimizer.step()
            schedule.step()
            _keep_signs_(trained, floors)
            if progress is not None:
                progress(step)
    return {name: v.detach().cpu().double() for name, v in trained.items()}


def _endless(batches: Batches, steps: int) -> Iterator[Batch]:
    """So many batches, from the start again where they end."""
    given = 0
    while given < steps:
        for batch in batches:
            yield batch
            given += 1
            if given == steps:
                return


def check_loss(loss: Any, what: str, on: str) -> Tensor:
    """A loss that can be trained with.

    Args:
        loss: what a function of the user's gave.
        what: who asks, for the message.
        on: what it has to depend on, for the message.

    Raises:
        BakeError: no scalar tensor, or one without a gradient.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise BakeError(f"{what}: the loss ({found}) must be a scalar tensor that depends on {on}")
    return loss


def targets_for(batch: Batch, loss: Loss | None, device: torch.device, name: str) -> Any:
    """What a loss is given beside the output: class numbers (N,), or for a loss of the user's whatever stands there.

    Args:
        batch: of the data.
        loss: the user's, or None for the cross-entropy.
        device: where the model is.
        name: what to call the data.

    Raises:
        BakeError: there are no class numbers, and the loss is the cross-entropy.
    """
    found = batch.labels if loss is None or batch.labels is not None else batch.targets
    if found is None and loss is None:
        raise BakeError(f"{name} has no class numbers to train on: give (images, labels) batches, or loss=")
    return _moved(found, device)  # a model may have taken its targets among its inputs


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(each, device) for each in value)
    return value


@torch.no_grad()
def _keep_signs_(trained: Mapping[str, Tensor], floors: Mapping[str, Tensor]) -> None:
    for name, v in trained.items():
        v.copy_(torch.where(floors[name], v.clamp(min=0), v))
