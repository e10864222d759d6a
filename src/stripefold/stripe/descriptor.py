"""What a gate is computed from: the squeezed value of each sample, and the module that is called with it."""

from __future__ import annotations

from dataclasses import dataclass

from stripefold.graph.graph import Graph
from stripefold.stripe.gate_products import keeps_order


@dataclass(frozen=True)
class Descriptor:
    """The squeezed value (N, D) of a gate.

    Attributes:
        node: Its node: the earliest value without positions through which the whole gate is computed; -1 without one.
        entry: Dotted path of the first module whose one input is that value, through views; None without one.
        entry_call: Which call of that module within one run of the model, from 0.
    """

    node: int = -1
    entry: str | None = None
    entry_call: int = 0


def descriptor_of(graph: Graph, gate: int) -> Descriptor:
    """Go back from a gate through values without positions, to where positions were reduced.

    Args:
        graph: The trace.
        gate: The gate's node.

    Returns:
        Nothing where there is no single such value (CBAM's two pools, each with layers of its own after it).
    """
    flat, reduced = _flat_part(graph, gate)
    if not reduced:
        return Descriptor()
    for node in sorted(flat):
        if _dominates(graph, node, gate, flat, reduced):
            before = [i for i in flat if graph.values_upstream[node] >> i & 1 and i not in reduced]
            if any(graph.nodes[i].kind == "layer" for i in before):
                return Descriptor()
            return _entered(graph, node, gate)
    return Descriptor()


def _is_flat(graph: Graph, index: int) -> bool:
    return sum(size > 1 for size in graph.nodes[index].shape[1:]) <= 1


def _flat_part(graph: Graph, gate: int) -> tuple[set[int], set[int]]:
    """Values without positions from which the gate is computed, and those among them that reduced the positions."""
    flat: set[int] = set()
    reduced: set[int] = set()
    todo = [gate]
    while todo:
        index = todo.pop()
        if index in flat:
            continue
        flat.add(index)
        for source in graph.nodes[index].inputs:
            if graph.nodes[source].role != "activation":
                continue
            if _is_flat(graph, source):
                todo.append(source)
            else:
                reduced.add(index)
    return flat, reduced


def _dominates(graph: Graph, node: int, gate: int, flat: set[int], reduced: set[int]) -> bool:
    """Whether every way from where positions were reduced to the gate leads through a node."""
    seen = {node}
    todo = [gate]
    while todo:
        index = todo.pop()
        if index in seen:
            continue
        if index in reduced:
            return False
        seen.add(index)
        todo.extend(source for source in graph.nodes[index].inputs if source in flat)
    return True


def _entered(graph: Graph, node: int, gate: int) -> Descriptor:
    """The first call of a module that takes the value, seen through views, and nothing else."""
    same = {node}
    for index in range(node + 1, gate + 1):
        made = graph.nodes[index]
        if len(made.inputs) == 1 and made.inputs[0] in same and keeps_order(graph, index):
            same.add(index)
    same = {index for index in same if graph.nodes[index].shape[:1] == graph.nodes[node].shape[:1]}
    calls = [v for index in sorted(same) for v in graph.module_calls_taking.get(index, []) if v.last <= gate + 1]
    first = min(calls, key=lambda visit: (visit.first, -visit.last), default=None)
    return Descriptor(node) if first is None else Descriptor(node, first.name, first.call)
