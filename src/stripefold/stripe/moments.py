"""Mean and second moment of vectors that come batch by batch, in float64; any split and order gives the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of vectors of width W.

    Attributes:
        count: Number of vectors.
        mean: (W,) float64.
        m2: (W,) float64, sum over the vectors of (v - mean)^2.
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """The moments of the rows of (n, W), n >= 1, in float64 on the values' own device."""
        values = values.to(torch.float64)
        mean = values.mean(0)
        return cls(len(values), mean, (values - mean).square_().sum(0))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of vectors together.

        Source: Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1979,
        equation 2.1.
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + delta.square() * (self.count * other.count / count),
        )
