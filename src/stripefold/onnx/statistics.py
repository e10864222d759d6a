"""Moments of every gate and the constants they make, batch by batch, in memory that does not grow with the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from stripefold.onnx.gates import Gate
from stripefold.onnx.session import Array
from stripefold.onnx.switched import Seen

OnnxConstantKind = Literal["mean", "energy", "least-squares"]
KINDS: tuple[OnnxConstantKind, ...] = get_args(OnnxConstantKind)


@dataclass
class GateStatistics:
    """What was seen of one gate so far; sums in float64.

    Attributes:
        gate: which.
        keep: bound of the sample.
        images: rows seen.
        mean: (C,) of v.
        m2: (C,) sum of (v - mean)^2.
        dtype: in which the network computes v.
    """

    gate: Gate
    keep: int = 0
    images: int = 0
    mean: Array = field(init=False)
    m2: Array = field(init=False)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        self.mean, self.m2 = np.zeros(self.gate.channels), np.zeros(self.gate.channels)
        self._energy, self._by_energy = np.zeros(self.gate.channels), np.zeros(self.gate.channels)
        self._sample: list[Array] = []
        self._class_sums: dict[int, tuple[Array, int]] = {}

    def add(self, seen: Seen, labels: Array | None = None) -> None:
        """Add one batch.

        Source: Chan, Golub, LeVeque 1979, equation 2.1, for the moments of two sets of vectors together.

        Args:
            seen: of this gate.
            labels: (rows,) class numbers, where classes are wanted.
        """
        values, count = seen.values, len(seen.values)
        mean = values.mean(0)
        delta, total = mean - self.mean, self.images + count
        self.m2 += ((values - mean) ** 2).sum(0) + delta**2 * (self.images * count / total)
        self.mean += delta * (count / total)
        self.dtype = seen.dtype
        self._energy += seen.energy.sum(0)
        self._by_energy += (values * seen.energy).sum(0)
        have = min(self.images, self.keep)
        self._sample += [values[: self.keep - have].astype(np.float32)] if have < self.keep else []
        self.images = total
        for label in () if labels is None or len(labels) != count else np.unique(labels):
            chosen = values[labels == label]
            before, seen_before = self._class_sums.get(int(label), (np.zeros(self.gate.channels), 0))
            self._class_sums[int(label)] = before + chosen.sum(0), seen_before + len(chosen)

    def constant(self, kind: OnnxConstantKind) -> Array:
        """The constant (C,) that stands for v.

        "mean": of v over the images. "energy" and "least-squares" are one and the same, in each channel
        sum(v |x|^2) / sum(|x|^2) with x what is scaled: of all constants the one with the least squared error of the
        product, |(v - constant) x|^2 summed over the images. A channel that is always 0 gets the mean.
        """
        if kind == "mean":
            mean: Array = self.mean.copy()
            return mean
        safe = np.where(self._energy > 0, self._energy, 1.0)
        return np.where(self._energy > 0, self._by_energy / safe, self.mean)

    @property
    def variance(self) -> Array:
        """(C,) of each channel over the images."""
        return self.m2 / max(1, self.images)

    @property
    def sample(self) -> Array:
        """(K, C) float32: v of the first K images."""
        empty = np.zeros((0, self.gate.channels), np.float32)
        return np.concatenate([empty, *self._sample])

    @property
    def classes(self) -> tuple[Array, Array] | None:
        """Means (classes, C) and counts (classes,), or None where no labels were given."""
        if not self._class_sums:
            return None
        means = np.zeros((max(self._class_sums) + 1, self.gate.channels))
        counts = np.zeros(len(means), np.int64)
        for label, (total, count) in self._class_sums.items():
            means[label], counts[label] = total / count, count
        return means, counts

    @property
    def stripe_index(self) -> float:
        """Between-channel variance over total variance of v; 1 where nothing varies, up to rounding."""
        between, within = float(self.mean.var()), float(self.variance.mean())
        return 1.0 if self._still(between + within) else between / (between + within)

    @property
    def within_over_mean(self) -> float | None:
        """Mean deviation of a channel over the images, relative to the mean of |v|; None where that is 0."""
        size = float(np.abs(self.mean).mean())
        return float(np.sqrt(self.variance).mean()) / size if size else None

    @property
    def moving_channels(self) -> float:
        """Effective number of channels that share the variance over the images: (sum s^2)^2 / sum s^4, 0 to C."""
        variance = self.variance
        total = float(variance.sum())
        return 0.0 if self._still(total / len(variance)) else total**2 / float((variance**2).sum())

    @property
    def largest_share(self) -> float:
        """Share of the variance over the images that lies in the one channel that moves most, 0 to 1."""
        total = float(self.variance.sum())
        return 0.0 if self._still(total / self.gate.channels) else float(self.variance.max()) / total

    @property
    def prior(self) -> float:
        """E |(v - mean) x|^2 over E |mean x|^2, as if v and x were independent: a guess of what a constant costs."""
        weight = self._energy if self._energy.any() else np.ones(self.gate.channels)
        lost, kept = float((weight * self.variance).sum()), float((weight * self.mean**2).sum())
        return 0.0 if not lost else lost / kept if kept else float("inf")

    def _still(self, variance: float) -> bool:
        rounding = float(np.finfo(self.dtype).eps) * float(np.abs(self.mean).max())
        return bool(variance**0.5 <= rounding)
