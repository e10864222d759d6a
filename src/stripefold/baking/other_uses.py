"""What a module gives or holds beside the gate that becomes a constant: then the module must stay."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from stripefold.baking.places import ReplacedModule
from stripefold.graph.absorption import Refusal
from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import VIEWS
from stripefold.stripe.discover import ChannelGate


def other_use(graph: Graph, dead: Collection[int], gate: ChannelGate, place: ReplacedModule) -> Refusal | None:
    """Why a constant for a product's factor would change something else, too; or None.

    Args:
        graph: one run.
        dead: the nodes that nothing needs once every gate of the plan is a constant.
        gate: as it stands in this run.
        place: the module that would be replaced.
    """
    if place.in_graph or not graph.outputs:
        return None  # in a torch.fx graph the product alone is given the constant
    inside = {i for call in graph.module_calls_of.get(place.path, ()) for i in range(call.first, call.last)}
    stay = _way(graph, gate) if place.whole else frozenset[int]()
    for index in sorted(inside - stay):
        if index not in dead and graph.nodes[index].role != "constant":
            use = _by(graph, dead, index, inside, gate.product)
            return Refusal(f"what {place.path!r} computes for the gate {use}, which a constant would change, too")
    for path, index in graph.tensors.items():
        users = [i for i in graph.consumers[index] if i not in dead and i not in inside]
        if path.startswith(f"{place.path}.") and users:
            return Refusal(
                f"{path!r} is read by {graph.nodes[users[0]].name!r} outside of {place.path!r}, which would go"
            )
    return None


def _way(graph: Graph, gate: ChannelGate) -> frozenset[int]:
    """What a module that is nothing but the product computes beside its factor: the product, and views."""
    (call,) = {call for call in graph.module_calls_of[gate.where] if call.first <= gate.product < call.last}
    return frozenset({gate.product, gate.end, *_back(graph, gate.scaled), *_back(graph, call.outputs[0], gate.end)})


def _back(graph: Graph, late: int, early: int = -1) -> Iterator[int]:
    """A value and the ones of which it is a view."""
    while late != early:
        yield late
        if graph.nodes[late].kind != "operation" or len(graph.nodes[late].inputs) != 1:
            return
        late = graph.nodes[late].inputs[0]


def _by(graph: Graph, dead: Collection[int], index: int, inside: Collection[int], product: int) -> str:
    """What else needs a value, in words."""
    todo = [index]
    while todo:
        current = todo.pop(0)
        node = graph.nodes[current]
        if current not in inside and node.name not in VIEWS:
            return f"is used by {node.name!r} in {node.where or 'the model itself'!r}"
        if current in graph.outputs:
            return graph.outputs[current]
        todo += [user for user in graph.consumers[current] if user not in dead and user != product]
    return "is used elsewhere"
