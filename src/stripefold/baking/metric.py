"""The metric of a baked model: top-1 accuracy, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.baking.batches import Batches
from stripefold.baking.sensitivity import finite_metric
from stripefold.distributed import gathered, run_on_all_ranks, summed
from stripefold.errors import BakeError
from stripefold.modules.example import run_example
from stripefold.modules.preserve_state import random_state_kept

Metric = Callable[[nn.Module], float]
"""Takes a model in evaluation mode; higher is better."""
ACCURACY = "top-1 accuracy in percent"


class Accuracy:
    """Top-1 accuracy in percent over labelled batches.

    Args:
        batches: with labels.
        group: the processes whose batches count together; None: this one alone.
    """

    def __init__(self, batches: Batches, group: Any = None) -> None:
        self._batches, self._group = batches, group
        self.step = 0.0
        """one image in percent, once it was called"""

    def __call__(self, model: nn.Module) -> float:
        """Run all batches.

        Args:
            model: gives logits (N, classes); in evaluation mode.

        Raises:
            BakeError: a batch without class numbers, or outputs that are no finite logits of it.
        """
        found = run_on_all_ranks(lambda: self._count(model), self._group, BakeError)
        hits, seen = summed(found, self._group, BakeError)
        self.step = 100 / seen
        return 100 * hits / seen

    def _count(self, model: nn.Module) -> tuple[int, int]:
        hits, seen = 0, 0
        with torch.no_grad():
            for batch in self._batches:
                where = f"batch {batch.number} of {self._batches.name}"
                logits = logits_of(run_example(model, batch.inputs))
                labels = class_numbers(batch.labels, logits, where)
                if not bool(logits.isfinite().all()):
                    raise BakeError(f"the logits for {where} are not finite: look at the images and at the weights")
                hits += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
        return hits, seen


class OfFirst:
    """A user's metric among several processes: all call it, and the first one's value counts, so that they agree.

    Args:
        metric: the user's.
        group: the processes.
    """

    def __init__(self, metric: Metric, group: Any) -> None:
        self._metric, self._group = metric, group

    def __call__(self, model: nn.Module) -> float:
        """What the metric gave on the first process."""
        value = run_on_all_ranks(lambda: self._metric(model), self._group, BakeError)
        return gathered(value, self._group, BakeError)[0]


def logits_of(output: Any) -> Tensor:
    """The scores in what a model returns: itself, or its ``logits``.

    Raises:
        BakeError: anything else.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, Tensor) and found.dim() == 2:
        return found
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise BakeError(f"the model returns {shape}, not logits (N, classes): give metric=, a function of the model")


def class_numbers(labels: Tensor | None, logits: Tensor, where: str) -> Tensor:
    """Labels (N,) beside logits (N, classes), on their device.

    Args:
        labels: what the batch holds.
        logits: what the model gives for it.
        where: the batch, for the message.

    Raises:
        BakeError: there are none, or not one per row, or one that is no class.
    """
    if labels is None:
        raise BakeError(
            f"{where} has no class numbers: give (images, labels) batches with labels (N,) of an integer type, or "
            "metric=, a function of the model, higher is better"
        )
    if len(labels) != len(logits) or int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
        raise BakeError(
            f"{where} has {len(labels)} labels from {int(labels.min())} to {int(labels.max())} for logits "
            f"{tuple(logits.shape)}: are these the data and the classes of this model?"
        )
    return labels.to(logits.device)


def measured(metric: Metric, model: nn.Module, when: str) -> float:
    """What the metric says, as a number.

    The random numbers that a shuffling loader draws are put back, so that each gate is measured on the same draws.

    Args:
        metric: the user's, or ``Accuracy``.
        model: in evaluation mode; a metric may change it.
        when: of what state of the model, for the message.

    Raises:
        BakeError: no finite number.
    """
    with random_state_kept(model):
        value = metric(model)
    return finite_metric(value, when)
