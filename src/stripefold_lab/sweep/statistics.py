"""Mean, spread and interval of a few runs, and of their paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
ROUNDING = 1e-12
"""Differences of equal pairs differ in their last bits."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a few numbers say about the mean they scatter around.

    Attributes:
        values: The numbers.
        mean: Their mean.
        spread: Their standard deviation, with n - 1; None of one number.
        low: Lower end of the interval of the mean; None where there is none: of one number, and of equal ones (runs on
            few test images often are), whose spread of 0 would make it a point.
        high: Upper end; None likewise.
    """

    values: tuple[float, ...]
    mean: float
    spread: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], *, level: float = LEVEL) -> Estimate | None:
    """Mean, spread and the interval that Student's t gives; None of no number.

    Args:
        values: Independent numbers.
        level: How often the interval covers the mean, if the numbers are normal.

    >>> found = estimate([1.0, 2.0, 3.0])
    >>> f"{found.mean} {found.spread} {found.low:.3f} {found.high:.3f}"
    '2.0 1.0 -0.484 4.484'
    >>> estimate([1.0]).low is None
    True
    """
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count == 1 or max(values) - min(values) < ROUNDING:
        return Estimate(values=tuple(values), mean=mean, spread=None if count == 1 else 0.0, low=None, high=None)
    from scipy.stats import t

    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf((1 + level) / 2, count - 1)) * spread / math.sqrt(count)
    return Estimate(values=tuple(values), mean=mean, spread=spread, low=mean - half, high=mean + half)


def paired(scores: Mapping[int, float], control: Mapping[int, float]) -> list[float]:
    """The differences of the seeds that both have, in the seeds' order.

    Args:
        scores: Seed -> score.
        control: Seed -> score of what it is compared with.
    """
    return [scores[seed] - control[seed] for seed in scores if seed in control]


def joint_level(comparisons: int, level: float = LEVEL) -> float:
    """The level of each of several intervals under which all of them hold together with ``level``, by Bonferroni.

    Args:
        comparisons: How many, at least one.
        level: Of all together.
    """
    return 1 - (1 - level) / comparisons
