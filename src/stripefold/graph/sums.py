"""Sums of values in a graph: which nodes are sums, what their terms are, which terms count."""

from __future__ import annotations

from collections.abc import Iterator

from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import ADDITIONS, REDUCTIONS


def is_sum(graph: Graph, index: int) -> bool:
    """Whether a value is a sum of values: by an addition, or by a reduction of what was stacked for it."""
    node = graph.nodes[index]
    if node.kind == "layer" or not node.inputs:
        return False
    if node.name in REDUCTIONS:
        return _stacked(graph, index) is not None
    return node.name in ADDITIONS and len(node.inputs) > 1


def is_part_of_sum(graph: Graph, index: int) -> bool:
    """Whether a sum is nothing but a term of the next sum."""
    consumers = graph.consumers[index]
    return index not in graph.outputs and len(consumers) == 1 and is_sum(graph, consumers[0])


def live_terms(graph: Graph, index: int) -> list[int]:
    """The terms that count, each once: feature maps, and constants from which another term is computed."""
    terms = _distinct_terms(graph, index)
    starts = [t for t in terms if _is_updated(graph, t, terms)]
    return [t for t in terms if graph.nodes[t].role == "activation" or any(_behind(graph, t, s) for s in starts)]


def _stacked(graph: Graph, index: int) -> int | None:
    """The stack that a reduction sums up again over its new dimension, or None."""
    node = graph.nodes[index]
    source = graph.nodes[node.inputs[0]]
    dims = node.arguments.get("dim")
    if source.name != "stack" or not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    rank = len(source.shape)
    return node.inputs[0] if dims[0] % rank == source.arguments["dim"] % rank else None


def _terms(graph: Graph, index: int) -> Iterator[int]:
    """The terms of a chain of sums, in order."""
    for source in _sources(graph, index):
        if is_sum(graph, source) and is_part_of_sum(graph, source):
            yield from _terms(graph, source)
        else:
            yield source


def _sources(graph: Graph, index: int) -> tuple[int, ...]:
    node = graph.nodes[index]
    if node.name in REDUCTIONS:
        stack = _stacked(graph, index)
        return graph.nodes[stack].inputs if stack is not None else ()
    if node.name == "lerp":
        return node.inputs[:2]
    if node.name == "addcmul":  # first + second * third: the deeper factor is the map
        return (node.inputs[0], max(node.inputs[1:], key=lambda i: graph.layers_upstream[i].bit_count()))
    return node.inputs


def _distinct_terms(graph: Graph, index: int) -> list[int]:
    return list(dict.fromkeys(_terms(graph, index)))


def _is_updated(graph: Graph, constant: int, terms: list[int]) -> bool:
    """Whether a constant is the start of a stream: added once to what was computed from it.

    What is added again and again (the query positions of a decoder) is no stream.
    """
    if graph.nodes[constant].role != "constant" or not _starts(graph, constant, terms):
        return False
    sums = [i for i in set(graph.consumers[constant]) if is_sum(graph, i)]
    return sum(_starts(graph, constant, _distinct_terms(graph, i)) for i in sums) == 1


def _starts(graph: Graph, constant: int, terms: list[int]) -> bool:
    return any(t != constant and _behind(graph, t, constant) for t in terms)


def _behind(graph: Graph, index: int, source: int) -> bool:
    """Whether ``source`` lies upstream of a value, or is it."""
    return bool(graph.values_upstream[index] >> source & 1)
