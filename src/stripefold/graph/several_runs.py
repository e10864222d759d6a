"""Propagation over several recorded runs: a change must go into the same layers in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stripefold.graph.absorption import FoldTarget, Refusal
from stripefold.graph.graph import Graph
from stripefold.graph.paths_not_taken import DID_NOT_RUN


def in_all_runs(graphs: Sequence[Graph], found: Sequence[FoldTarget | Refusal | None]) -> FoldTarget | Refusal:
    """Where a change goes so that it is exact in every run.

    Args:
        graphs: one for each run.
        found: where it goes in each of them, or why nowhere; None where what makes the change does not run.
    """
    joint: FoldTarget | None = None
    for number, each in enumerate(found):
        if isinstance(each, Refusal):
            return each if joint is None else replace(each, why=f"on example {number + 1}, {each.why}")
        if each is not None:
            if joint is not None and set(joint.parts) != set(each.parts):
                return Refusal(f"{_listed(joint)} would take it on one example and {_listed(each)} on another")
            joint = each if joint is None else _both(joint, each)
    if joint is None:
        return Refusal(f"it {DID_NOT_RUN}", unseen=True)
    for graph, each in zip(graphs, found, strict=True):
        called = graph.calls_of if each is None else ()
        other = next((layer for layer in joint.layers if layer in called), None)
        if other is not None:
            return Refusal(f"{other!r} runs without it on another example")
    return joint


def _both(first: FoldTarget, other: FoldTarget) -> FoldTarget:
    """What holds in both runs."""
    nonnegative = first.nonnegative or other.nonnegative
    return replace(first, nonnegative=nonnegative, eval_only=first.eval_only or other.eval_only)


def _listed(target: FoldTarget) -> str:
    return ", ".join(map(repr, target.layers))
