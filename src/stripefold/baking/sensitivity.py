"""Which gates may become constants: a prior from the stripes, and what the metric says when one is baked alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stripefold.errors import BakeError

if TYPE_CHECKING:  # the search serves networks that need no torch
    from torch import Tensor

    from stripefold.stripe.report import StripeReport

Measure = Callable[[Collection[str]], float]
"""The metric (higher is better) with these gates constant and the others as they are."""
Tick = Callable[[int, int], None]
"""(done, of how many)"""


@dataclass(frozen=True)
class GreedySelection:
    """What the greedy search decided.

    Attributes:
        baked: gates, in the order in which they were accepted.
        metric: gate -> the metric with it and all accepted before it constant; for one that was left dynamic, what it
            would have been.
    """

    baked: tuple[str, ...]
    metric: Mapping[str, float]


def finite_metric(value: Any, when: str) -> float:
    """What a metric of the user's gave, as a number.

    Args:
        value: what it returned.
        when: of what state of the network, for the message.

    Raises:
        BakeError: no finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BakeError(f"the metric gives {value!r} {when}: it must be a finite number, higher is better")
    return number


def prior(mean: Tensor, variance: Tensor, energy: Tensor | None) -> float:
    """How much of a gate's output its constant leaves out, without running the model: a relative squared error.

    E |(v - mean) (.) x|^2 / E |mean (.) x|^2, as if v and x were independent.

    Args:
        mean: of v over images, (C,).
        variance: of v over images, (C,).
        energy: E x^2 of what the gate scales, (C,); None counts all channels alike.

    Returns:
        0 for a gate that is constant; infinite for one whose mean is 0.
    """
    weight = mean.new_ones(mean.shape) if energy is None else energy.to(mean)
    lost, kept = float((weight * variance).sum()), float((weight * mean.square()).sum())
    if not lost:
        return 0.0
    return lost / kept if kept else float("inf")


def priors_of(stripes: StripeReport, energy: Mapping[str, Tensor]) -> dict[str, float]:
    """Gate -> its prior.

    Args:
        stripes: what the gates give.
        energy: gate -> E x^2 of what it scales (C,), of those where that is known.
    """
    return {s.name: prior(s.mean, s.within_variance, energy.get(s.name)) for s in stripes.layers}


def single_gate_metrics(gates: Sequence[str], measure: Measure, tick: Tick) -> dict[str, float]:
    """The metric with each gate constant and all others as they are.

    Args:
        gates: in any order.
        measure: runs the metric.
        tick: told after each.
    """
    found = {}
    for done, gate in enumerate(gates, start=1):
        found[gate] = measure((gate,))
        tick(done, len(gates))
    return found


def greedy(order: Sequence[str], measure: Measure, least: float, tick: Tick) -> GreedySelection:
    """Bake one gate after the other, the cheapest first; one that would break the budget stays dynamic.

    Costs add up in ways that no single measurement shows, so the metric is measured anew with each one added.

    Args:
        order: the gates, cheapest first.
        measure: runs the metric.
        least: the metric may not fall below it.
        tick: told after each.
    """
    baked: list[str] = []
    metric: dict[str, float] = {}
    for done, gate in enumerate(order, start=1):
        metric[gate] = measure((*baked, gate))
        if metric[gate] >= least:
            baked.append(gate)
        tick(done, len(order))
    return GreedySelection(tuple(baked), metric)


def cheapest_first(gates: Sequence[str], alone: Mapping[str, float], priors: Mapping[str, float]) -> list[str]:
    """Gates by what baking them alone costs; the prior decides between equals, then their place in the network."""
    return sorted(gates, key=lambda gate: (-alone.get(gate, 0.0), priors.get(gate, 0.0)))
