"""Where the constant of a gate may go so that it is exact in every recorded run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from stripefold.graph.absorption import FoldTarget, Refusal
from stripefold.graph.graph import Graph
from stripefold.graph.propagate import Flow
from stripefold.graph.several_runs import in_all_runs
from stripefold.layers.accepts import Acceptance
from stripefold.stripe.discover import ChannelGate

Direction = Literal["backward", "forward"]
Targets = dict[Direction, FoldTarget | Refusal]


@dataclass(frozen=True)
class GateInRun:
    """A gate as it stands in one run.

    Attributes:
        graph: the run.
        dead_nodes: nodes that will not exist any more.
        gate: the gate, None where it does not run.
    """

    graph: Graph
    dead_nodes: frozenset[int]
    gate: ChannelGate | None

    @property
    def has_sum(self) -> bool:
        """Whether the scaled value is added to the product, wherever the gate runs."""
        return self.gate is None or added_to(self.graph, self.gate, self.dead_nodes) is not None


def targets_of(
    runs: Sequence[GateInRun], accept: Acceptance, *, beside: bool
) -> tuple[tuple[tuple[Direction, FoldTarget], ...], Refusal]:
    """Where the constant of a gate may go: without conditions first, then backward first; and why not elsewhere.

    Args:
        runs: the gate in each run.
        accept: what the layers can take.
        beside: the sum of the scaled value and the product goes, too (see ``added_to``).
    """
    graphs = [run.graph for run in runs]
    own = [None if run.gate is None else _targets_in(run, run.gate, accept, beside=beside) for run in runs]
    ways: tuple[Direction, ...] = ("backward", "forward")
    joint = {way: in_all_runs(graphs, [None if each is None else each[way] for each in own]) for way in ways}
    refused = {way: found for way, found in joint.items() if isinstance(found, Refusal)}
    why = "; ".join(f"{way}: {refusal.why}" for way, refusal in refused.items())
    open_to = [(way, found) for way, found in joint.items() if isinstance(found, FoldTarget)]
    open_to.sort(key=lambda entry: (entry[1].eval_only, entry[1].nonnegative))
    return tuple(open_to), Refusal(why, unseen=any(refusal.unseen for refusal in refused.values()))


def _targets_in(run: GateInRun, gate: ChannelGate, accept: Acceptance, *, beside: bool) -> Targets:
    graph, total = run.graph, added_to(run.graph, gate, run.dead_nodes) if beside else None
    if not graph.outputs:
        unknown = Refusal("what the model returns holds no tensor that the trace knows")
        return {"backward": unknown, "forward": unknown}
    dead_nodes = run.dead_nodes if total is None else run.dead_nodes | {total}  # the sum goes with the product
    end = gate.end if total is None else total
    return {
        "backward": Flow(graph=graph, accept=accept, dead=dead_nodes).backward(
            "scale", gate.scaled, gate.axis, user=gate.product
        ),
        "forward": Flow(graph=graph, accept=accept, dead=run.dead_nodes).forward("scale", end, gate.axis),
    }


def added_to(graph: Graph, gate: ChannelGate, dead_nodes: Collection[int]) -> int | None:
    """The sum x + v x of what a gate scales and its product, where nothing else uses either; or None."""
    users = {user for user in graph.consumers[gate.product] if user not in dead_nodes}
    if len(users) != 1 or any(graph.seen_outside(index) for index in (gate.product, gate.scaled)):
        return None
    total = users.pop()
    node = graph.nodes[total]
    alone = {user for user in graph.consumers[gate.scaled] if user not in dead_nodes} == {gate.product, total}
    plain = node.kind == "operation" and node.name == "add" and node.arguments.get("alpha") == 1
    return total if alone and plain and sorted(node.inputs) == sorted((gate.scaled, gate.product)) else None
