"""Where may a per-channel scale of a value go, exactly?

The value is y = v (.) x with v constant per channel. *Backward*: x comes from a layer through operations that commute
with the scale, and nothing else sees what lies between: the layer's output side takes v. *Forward*: everything that
y reaches does so through such operations and ends in layers whose input side takes v. Whether a layer has such a side
is for the caller to say (``Sides``), because rules live in another package.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from stripefold.graph.commuting import DoesNotCommuteError
from stripefold.graph.graph import Graph
from stripefold.graph.patterns import along
from stripefold.graph.scale_ahead import ForwardSearch
from stripefold.graph.scale_back import BackwardSearch
from stripefold.graph.scale_parts import Part, Reason, Side, Sides, Takes, Target

__all__ = ["Part", "Reason", "Side", "Sides", "Takes", "Target", "backward", "forward", "unused"]

NONE: Mapping[int, int] = MappingProxyType({})


def backward(
    graph: Graph,
    scaled: int,
    axis: int,
    *,
    product: int,
    sides: Sides,
    ignoring: Collection[int] = (),
    neutral: Mapping[int, int] = NONE,
) -> Target | Reason:
    """Where the scale of a value goes if it moves against the flow.

    Args:
        graph: of a trace.
        scaled: the node x that is multiplied.
        axis: the channel axis of x.
        product: the node y; any other user of x is in the way.
        sides: what the layers can take.
        ignoring: nodes that will not exist any more (the gate's own path, see ``unused``).
        neutral: node -> the operand that it passes on unchanged by now.
    """
    shape = graph.nodes[scaled].shape
    search = BackwardSearch(graph, sides, frozenset(ignoring), neutral)
    try:
        search.go(scaled, product, along(shape, axis % len(shape)))
    except DoesNotCommuteError as error:
        return Reason(str(error))
    return search.target()


def forward(
    graph: Graph,
    product: int,
    axis: int,
    *,
    sides: Sides,
    ignoring: Collection[int] = (),
    neutral: Mapping[int, int] = NONE,
) -> Target | Reason:
    """Where the scale of a value goes if it moves with the flow: into every consumer, or nowhere.

    Args:
        graph: of a trace.
        product: the node y.
        axis: the channel axis of y.
        sides: what the layers can take.
        ignoring: nodes that will not exist any more.
        neutral: node -> the operand that it passes on unchanged by now.
    """
    shape = graph.nodes[product].shape
    search = ForwardSearch(graph, sides, frozenset(ignoring), neutral)
    try:
        search.go(product, along(shape, axis % len(shape)))
    except DoesNotCommuteError as error:
        return Reason(str(error))
    return search.target() if search.parts else Reason("what is scaled reaches no layer")


def unused(graph: Graph, without: Mapping[int, Collection[int]]) -> frozenset[int]:
    """The nodes that lead to no output of the model once some products have lost factors.

    Args:
        graph: of a trace.
        without: product -> the factors that it loses (its gates).
    """
    living: set[int] = set()
    for index in reversed(range(len(graph.nodes))):
        users = [user for user in graph.consumers[index] if user in living]
        if index in graph.outputs or any(index not in without.get(user, ()) for user in users):
            living.add(index)
    return frozenset(range(len(graph.nodes))) - living
