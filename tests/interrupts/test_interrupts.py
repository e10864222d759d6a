"""Ctrl-C at a random moment of a public call: the model is as it was, or completely changed where that was asked."""

from __future__ import annotations

import pytest

from tests.interrupts.calls import CASES
from tests.interrupts.interrupted import interrupted, moments

TOTAL = 1000


def faults_of(name: str, count: int, seed: int) -> tuple[int, list[str]]:
    """How many of the interrupts came in time, and what they left."""
    hits, found = 0, []
    for how in moments(CASES[name], count, seed):
        hit, faults = interrupted(CASES[name], how)
        hits += hit
        found += faults
    return hits, found


@pytest.mark.parametrize(
    "name", ["sites busy", "attach_ training", "fold_ busy", "fold_ fuse training", "detach_ busy"]
)
def test_a_few_interrupts(name: str) -> None:
    hits, found = faults_of(name, 6, seed=1)
    assert hits > 0
    assert found == []


@pytest.mark.stress
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", CASES)
def test_a_thousand_interrupts_over_all_calls(name: str) -> None:
    hits, found = faults_of(name, -(-TOTAL * 4 // 3 // len(CASES)), seed=0)  # some come too late
    print(name, hits, found)
    assert found == []
