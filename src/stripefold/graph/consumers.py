"""Questions about what follows a layer: its only consumer, and what cancels its scale."""

from __future__ import annotations

from torch import Tensor

from stripefold.graph.channels import channel_axis
from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import RESHAPES, is_batch_norm
from stripefold.graph.operation_table import StoppedError, check_passes, joining_axis, operation
from stripefold.graph.patterns import concatenated, pattern_along, varies


def followed_by(graph: Graph, name: str) -> str | None:
    """The only consumer of a layer, with nothing but reshapes between, or None."""
    results = graph.results(name)
    if len(results) != 1 or not graph.is_called_once(name):
        return None
    index = results[0]
    while index not in graph.outputs and len(set(graph.consumers[index])) == 1:
        index = graph.consumers[index][0]
        node = graph.nodes[index]
        if node.kind == "layer":
            return node.name if graph.is_called_once(node.name) else None
        if node.name not in RESHAPES:
            return None
    return None


def cancelling_norm(graph: Graph, name: str) -> str | None:
    """The BatchNorm or InstanceNorm that undoes every per-channel scale of a layer, or None.

    Each path from the layer must reach one through operations that commute with a positive scale of each channel.
    Where several norms do it together, the first is named.
    """
    todo = [(i, pattern_along(graph.nodes[i].shape, channel_axis(graph.nodes[i]))) for i in graph.results(name)]
    seen: set[int] = set()
    norms: list[int] = []
    while todo:
        index, pattern = todo.pop()
        if index in graph.outputs or not graph.consumers[index]:
            return None
        for user in set(graph.consumers[index]) - seen:
            seen.add(user)
            node = graph.nodes[user]
            if user in graph.unused_indices:
                continue
            after = _scaled_after(graph, index, user, pattern)
            if _normalises(node) and pattern.dim() > 1 and not _varies_but(pattern, 1):
                norms.append(user)
            elif after is not None:
                todo.append((user, after))
            else:
                return None
    if not norms:
        return None
    first = graph.nodes[min(norms)]
    return first.name if first.kind == "layer" else first.where


def _normalises(node: Node) -> bool:
    names = node.inner if node.kind == "layer" else (node.name,)
    return any(is_batch_norm(name) for name in names)


def _scaled_after(graph: Graph, source: int, user: int, pattern: Tensor) -> Tensor | None:
    """The pattern of a positive scale behind an operation that commutes with it, or None."""
    before, node = graph.nodes[source], graph.nodes[user]
    if node.kind == "layer":
        return None
    try:
        row = operation(node, "scale")
        if row.family == "join":  # beside what others bring, the channels are cancelled all the same
            shapes = [graph.nodes[i].shape for i in node.inputs]
            return concatenated([pattern if i == source else None for i in node.inputs], shapes, joining_axis(node))
        if row.family == "sum" or len([i for i in set(node.inputs) if graph.nodes[i].role != "constant"]) != 1:
            return None
        check_passes(node, "scale")
        return row.layout.ahead(node, before.shape, pattern)
    except StoppedError:
        return None


def _varies_but(pattern: Tensor, axis: int) -> bool:
    return varies(pattern, [dim for dim in range(pattern.dim()) if dim != axis])
