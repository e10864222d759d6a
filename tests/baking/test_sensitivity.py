"""Ranking and choosing gates: the prior against a hand-made case, the greedy search where costs interact."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch

from stripefold.baking.sensitivity import cheapest_first, greedy, prior, single_gate_metrics

COST = {"a": 3.0, "b": 0.5, "c": 1.0, "d": -0.2}


def measure(baked: Collection[str]) -> float:
    """Costs add up, and b and c together cost 2 more than both alone."""
    return 90 - sum(COST[gate] for gate in baked) - (2.0 if {"b", "c"} <= set(baked) else 0.0)


def silent(done: int, total: int) -> None:
    pass


def test_prior_by_hand() -> None:
    mean, variance = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    assert prior(mean, variance, None) == pytest.approx(0.5 / 5)
    # The channel that varies carries nine times the energy.
    assert prior(mean, variance, torch.tensor([9.0, 1.0])) == pytest.approx(4.5 / 13)


def test_prior_at_its_ends() -> None:
    assert prior(torch.tensor([0.3, 0.0]), torch.zeros(2), None) == 0
    assert prior(torch.zeros(2), torch.ones(2), None) == float("inf")


def test_alone_measures_each() -> None:
    seen: list[tuple[int, int]] = []
    found = single_gate_metrics(list(COST), measure, lambda done, total: seen.append((done, total)))
    assert found == {gate: 90 - cost for gate, cost in COST.items()}
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_cheapest_first_and_the_prior_between_equals() -> None:
    metric = {"a": 88.0, "b": 90.0, "c": 90.0, "d": 91.0}
    assert cheapest_first("abcd", metric, {"b": 0.2, "c": 0.1}) == ["d", "c", "b", "a"]
    assert cheapest_first("ab", {}, {"a": 0.2, "b": 0.1}) == ["b", "a"]


def test_greedy_measures_anew_and_leaves_what_breaks_the_budget() -> None:
    found = greedy(["d", "b", "c", "a"], measure, 90 - 1.5, silent)
    assert found.baked == ("d", "b")  # c alone would cost 1.0, beside b it costs 3.0
    assert found.metric == {"d": 90.2, "b": 89.7, "c": pytest.approx(86.7), "a": pytest.approx(86.7)}


def test_greedy_goes_on_after_one_that_is_too_dear() -> None:
    assert greedy(["a", "b"], measure, 89.0, silent).baked == ("b",)
    assert greedy(["a"], measure, 89.0, silent).baked == ()
