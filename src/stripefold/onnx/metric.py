"""The metric of an ONNX network: accuracy, a function of the user's, or agreement with its original outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stripefold.baking.sensitivity import finite_metric
from stripefold.errors import BakeError
from stripefold.onnx.data import FeedBatches
from stripefold.onnx.session import Array, Feed

RunNetwork = Callable[[Feed], list[Array]]
"""Input arrays by name -> all outputs."""
OnnxMetric = Callable[[RunNetwork], float]
"""Takes a network as a function of its inputs; higher is better."""
ACCURACY = "top-1 accuracy in percent"
AGREEMENT = "agreement with the original in percent"
_SUM_TOLERANCE = 1e-3
_LEAST_CLASSES = 3  # of an output with more than one position, to be read as probabilities


class OnnxAccuracy:
    """Top-1 accuracy in percent; the first output holds the scores (N, classes)."""

    def __init__(self, batches: FeedBatches) -> None:
        self._batches = batches

    def __call__(self, run: RunNetwork) -> float:
        """Run all batches.

        Raises:
            BakeError: a batch without labels, outputs that are no scores, labels that are no classes of it.
        """
        hits, seen = 0, 0
        for batch in self._batches:
            scores = run(batch.feed)[0]
            if batch.labels is None:
                raise BakeError(
                    f"batch {batch.number} has no labels, and the first one has: give labels to all or none"
                )
            if scores.ndim != 2 or len(scores) != batch.size:
                raise BakeError(
                    f"the first output has the shape {scores.shape}, no scores (N, classes): give metric=, a function "
                    "of the network, or leave the labels out"
                )
            if int(batch.labels.max()) >= scores.shape[1]:
                raise BakeError(
                    f"batch {batch.number} has the label {int(batch.labels.max())}, and the network {scores.shape[1]} "
                    "classes: are these its data?"
                )
            hits += int((scores.argmax(1) == batch.labels).sum())
            seen += batch.size
        return 100 * hits / seen


class OutputAgreement:
    """How far the outputs are what the original gave, in percent; those are stored once.

    Scores (N, classes), and probabilities along the last axis, agree where the largest is the same; whole numbers where
    they are equal; anything else by 1 - |y - y0| / |y0| of each sample, not below 0. Several outputs count alike.

    Args:
        batches: what is compared on.
        original: the network as it was given.
    """

    def __init__(self, batches: FeedBatches, original: RunNetwork) -> None:
        self._batches = batches
        self._stored = [[_kept(output) for output in original(batch.feed)] for batch in batches]

    def __call__(self, run: RunNetwork) -> float:
        """Run all batches.

        Raises:
            BakeError: the data are others than at first.
        """
        total, seen = 0.0, 0
        for batch, stored in zip(self._batches, self._stored, strict=False):
            outputs = run(batch.feed)
            shares = [_agreement(kept, output) for kept, output in zip(stored, outputs, strict=True)]
            total += batch.size * float(np.mean(shares))
            seen += batch.size
        if not seen:
            raise BakeError("the data gave no batch the second time: give a list, or a function that starts anew")
        return 100 * total / seen


def _kept(output: Array) -> Array:
    """What is stored of an output: the largest class of scores, else all numbers."""
    return output.argmax(-1) if _is_scores(output) else output


def _agreement(kept: Array, output: Array) -> float:
    if kept.ndim < output.ndim:
        return float((kept == output.argmax(-1)).mean()) if kept.shape == output.shape[:-1] else 0.0
    if kept.shape != output.shape:
        return 0.0
    if not np.issubdtype(kept.dtype, np.floating):
        return float((kept == output).mean()) if kept.size else 1.0
    samples = len(kept) if kept.ndim else 1
    before, after = kept.reshape(samples, -1).astype(np.float64), output.reshape(samples, -1).astype(np.float64)
    size = np.linalg.norm(before, axis=1)
    error = np.linalg.norm(after - before, axis=1)
    return float(np.mean(np.clip(1 - error / np.where(size > 0, size, 1.0), 0, 1)))


def _is_scores(output: Array) -> bool:
    if not np.issubdtype(output.dtype, np.floating) or output.ndim < 2 or output.shape[-1] < 2:
        return False
    if output.ndim == 2:
        return True
    summed = np.abs(output.sum(-1, dtype=np.float64) - 1)
    return output.shape[-1] >= _LEAST_CLASSES and bool((summed < _SUM_TOLERANCE).all()) and bool((output >= 0).all())


def measured(metric: OnnxMetric, run: RunNetwork, when: str) -> float:
    """What the metric says, as a number.

    Raises:
        BakeError: no finite number.
    """
    return finite_metric(metric(run), when)


def as_run(run: Callable[[Feed], list[Array]], names: Sequence[str]) -> RunNetwork:
    """A network as the user's metric may call it: with arrays by name, or with the array of a single input."""

    def call(feed: Any) -> list[Array]:
        return run(feed if isinstance(feed, dict) or hasattr(feed, "keys") else {names[0]: np.asarray(feed)})

    return call
