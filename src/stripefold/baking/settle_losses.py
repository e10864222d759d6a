"""What settling minimises: the task's loss, the divergence from the network as it was given, or a share of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripefold.baking.finetune import check_loss, cross_entropy, targets_for
from stripefold.baking.settle_options import Settle
from stripefold.errors import BakeError
from stripefold.modules.example import example_copy, run_example
from stripefold.modules.tensors import tensors_of
from stripefold.stripe.batches import Batch


class Losses:
    """The loss of one batch.

    Args:
        model: as it is given; it is copied where its answers are wanted.
        options: of the call.
        device: where it runs.
        name: what the user calls the data, for messages.
    """

    def __init__(self, model: nn.Module, options: Settle, device: torch.device, name: str) -> None:
        self._options, self._device, self._name = options, device, name
        self._teacher = copy.deepcopy(model).eval() if options.distill else None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model, and its teacher, on a batch.

        Raises:
            BakeError: no targets where they are needed, or a loss that is no finite scalar that depends on the weights.
        """
        share = self._options.distill
        given = None
        if self._teacher is not None:
            with torch.no_grad():
                given = run_example(self._teacher, example_copy(batch.inputs))
        output = run_example(model, batch.inputs)
        total: Any = 0.0
        if share < 1:
            targets = targets_for(batch, self._options.loss, self._device, f"settle: {self._name}")
            own = (self._options.loss or cross_entropy)(output, targets)
            total = (1 - share) * check_loss(own, "settle", "the weights")
        if share > 0:
            apart = (self._options.divergence or divergence)(output, given)
            total = total + share * check_loss(apart, "settle", "the weights")
        return total  # type: ignore[no-any-return]


def divergence(output: Any, given: Any) -> Tensor:
    """Of class probabilities where both are logits (N, classes); else the relative squared error of all tensors.

    Args:
        output: what the model returns.
        given: what it returned before.

    Raises:
        BakeError: outputs of two structures, or without a floating-point tensor.
    """
    ours, theirs = (getattr(value, "logits", value) for value in (output, given))
    if isinstance(ours, Tensor) and ours.dim() == 2 and ours.is_floating_point():
        wide = torch.promote_types(ours.dtype, torch.float32)
        return F.kl_div(
            F.log_softmax(ours.to(wide), 1), F.log_softmax(theirs.to(wide), 1), reduction="batchmean", log_target=True
        )
    pairs = _pairs(output, given)
    errors = [(a - b).square().mean() / b.square().mean().clamp(min=torch.finfo(b.dtype).tiny) for a, b in pairs]
    return torch.stack(errors).mean()


def _pairs(output: Any, given: Any) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = _floats(output), _floats(given)
    if not ours or {path: t.shape for path, t in ours.items()} != {path: t.shape for path, t in theirs.items()}:
        raise BakeError(
            "settle: what the model returns while it trains cannot be compared with what it returned as given "
            f"({_listed(ours)} and {_listed(theirs)}): give divergence=, a function of both"
        )
    return [(t, theirs[path]) for path, t in ours.items()]


def _floats(output: Any) -> dict[str, Tensor]:
    return {
        path: t.to(torch.promote_types(t.dtype, torch.float32))
        for path, t in tensors_of(output)
        if t.is_floating_point()
    }


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{path} {tuple(t.shape)}" for path, t in list(tensors.items())[:4]) or "no floating-point tensor"
