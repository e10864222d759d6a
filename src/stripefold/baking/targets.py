"""Where the constant of a gate may go so that it is exact in every recorded run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stripefold.folding.sides import LayerSides, layers_of
from stripefold.graph.graph import Graph
from stripefold.graph.scale_paths import Reason, Target, backward, forward
from stripefold.stripe.discover import ChannelGate

Way = Literal["backward", "forward"]
Targets = dict[Way, Target | Reason]


@dataclass(frozen=True)
class GateInRun:
    """A gate as it stands in one run.

    Attributes:
        graph: the run.
        ignoring: nodes that will not exist any more.
        gate: the gate, None where it does not run.
    """

    graph: Graph
    ignoring: frozenset[int]
    gate: ChannelGate | None

    @property
    def has_sum(self) -> bool:
        """Whether the scaled value is added to the product, wherever the gate runs."""
        return self.gate is None or added_to(self.graph, self.gate, self.ignoring) is not None


def targets_of(
    runs: Sequence[GateInRun], sides: LayerSides, *, beside: bool
) -> tuple[tuple[tuple[Way, Target], ...], str]:
    """Where the constant of a gate may go: without conditions first, then backward first; and why not elsewhere.

    Args:
        runs: the gate in each run.
        sides: what the layers can take.
        beside: the sum of the scaled value and the product goes, too (see ``added_to``).
    """
    joint: Targets = {}
    for number, run in enumerate(runs):
        if run.gate is not None:
            own = _targets_in(run, run.gate, sides, beside=beside)
            joint = {way: _agreed(joint[way], own[way], number) for way in joint} if joint else own
    for run in runs:
        if run.gate is None:
            joint = {way: _alone(found, run.graph) for way, found in joint.items()}
    reasons = [f"{way}: {found.why}" for way, found in joint.items() if isinstance(found, Reason)]
    open_to = [(way, found) for way, found in joint.items() if isinstance(found, Target)]
    open_to.sort(key=lambda entry: (entry[1].eval_only, entry[1].nonnegative))
    return tuple(open_to), "; ".join(reasons)


def _targets_in(run: GateInRun, gate: ChannelGate, sides: LayerSides, *, beside: bool) -> Targets:
    graph, total = run.graph, added_to(run.graph, gate, run.ignoring) if beside else None
    if not graph.outputs:
        unknown = Reason("what the model returns holds no tensor that the trace knows")
        return {"backward": unknown, "forward": unknown}
    ignoring = run.ignoring if total is None else run.ignoring | {total}  # the sum goes with the product
    end = gate.end if total is None else total
    return {
        "backward": backward(graph, gate.scaled, gate.axis, product=gate.product, sides=sides, ignoring=ignoring),
        "forward": forward(graph, end, gate.axis, sides=sides, ignoring=run.ignoring),
    }


def _agreed(first: Target | Reason, other: Target | Reason, number: int) -> Target | Reason:
    """What holds for the runs before and for this one, too."""
    if isinstance(first, Reason):
        return first
    if isinstance(other, Reason):
        return Reason(f"on example {number + 1}, {other.why}")
    if set(first.parts) != set(other.parts):
        return Reason(f"on example {number + 1}, other layers would have to take it: {_listed(other)}")
    return replace(
        first, nonnegative=first.nonnegative or other.nonnegative, eval_only=first.eval_only or other.eval_only
    )


def _alone(found: Target | Reason, graph: Graph) -> Target | Reason:
    """What holds for a run in which the gate does not run: none of the layers may."""
    called = {call.name for call in graph.calls}
    if isinstance(found, Target) and any(layer in called for layer in layers_of(found.parts)):
        return Reason(f"{_listed(found)} runs without the gate on another example")
    return found


def _listed(target: Target) -> str:
    return ", ".join(map(repr, layers_of(target.parts)))


def added_to(graph: Graph, gate: ChannelGate, ignoring: Collection[int]) -> int | None:
    """The sum x + v x of what a gate scales and its product, where nothing else uses either; or None."""
    users = set(graph.consumers[gate.product]) - set(ignoring)
    if len(users) != 1 or any(graph.seen_outside(index) for index in (gate.product, gate.scaled)):
        return None
    total = users.pop()
    node = graph.nodes[total]
    alone = set(graph.consumers[gate.scaled]) - set(ignoring) == {gate.product, total}
    plain = node.kind == "operation" and node.name == "add" and node.arguments.get("alpha") == 1
    return total if alone and plain and sorted(node.inputs) == sorted((gate.scaled, gate.product)) else None
