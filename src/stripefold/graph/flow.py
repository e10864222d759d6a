"""Questions about what follows what: consumers and producers of a layer, its only follower, what cancels its scale."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stripefold.graph.channels import axis_after, channel_axis
from stripefold.graph.commuting import DoesNotCommuteError, passed
from stripefold.graph.graph import Graph, Node, first_calls
from stripefold.graph.operations import PRODUCTS, RESHAPES, is_batch_norm
from stripefold.graph.patterns import aligned, along, joined, varies
from stripefold.graph.scale_parts import JOINS, joining_axis


@dataclass(frozen=True)
class Follower:
    """The one layer right behind another (``name``), or None and the reason why there is none.

    Attributes:
        name: its dotted path.
        why: why there is none.
        axis: where the channels of the layer in front lie in what it takes, from 0.
    """

    name: str | None
    why: str
    axis: int = -1


def consumers(graph: Graph, name: str) -> tuple[str, ...]:
    """The layers that a layer's output reaches without passing another layer, in call order."""
    found: dict[str, None] = {}
    todo = list(graph.results(name))
    seen: set[int] = set()
    while todo:
        for index in graph.consumers[todo.pop(0)]:
            if index in seen:
                continue
            seen.add(index)
            if graph.nodes[index].kind == "layer":
                found[graph.nodes[index].name] = None
            else:
                todo.append(index)
    return tuple(first_calls(graph, found))


def producers(graph: Graph, name: str) -> tuple[str, ...]:
    """The layers whose outputs reach a layer without passing another layer, the nearest first."""
    found: dict[str, None] = {}
    todo = [source for index in graph.results(name) for source in graph.nodes[index].inputs]
    seen: set[int] = set()
    while todo:
        index = todo.pop(0)
        if index in seen:
            continue
        seen.add(index)
        if graph.nodes[index].kind == "layer":
            found[graph.nodes[index].name] = None
        else:
            todo.extend(graph.nodes[index].inputs)
    return tuple(found)


def follower(graph: Graph, name: str) -> Follower:
    """The only consumer of a layer, with nothing but reshapes between that leave its channels an axis of their own."""
    results = graph.results(name)
    times = sum(call.name == name for call in graph.calls)
    if times != 1 or len(results) != 1:
        return Follower(None, f"called {times} times" if times != 1 else "returns several values, or its input")
    unlike = graph.unlike_its_type(name, taking=False)
    if unlike is not None:
        return Follower(None, unlike)
    index = results[0]
    axis = channel_axis(graph.nodes[index])
    exposed: str | None = None
    while True:
        if index in graph.outputs:
            return Follower(None, f"its output {graph.outputs[index]}")
        exposed = exposed or graph.exposed.get(index)
        users = sorted(set(graph.consumers[index]))
        if len(users) != 1:
            return Follower(None, f"its output is used {len(users)} times")
        node = graph.nodes[users[0]]
        if node.kind == "layer":
            found = _only_call(graph, node, axis)
            return Follower(None, f"its output {exposed.rstrip(',')}") if found.name and exposed else found
        after = axis_after(graph, index, users[0], axis) if node.name in RESHAPES else None
        if after is None:
            return Follower(None, f"{node.name!r} in {node.where or 'the model itself'} stands between")
        index, axis = users[0], after


def _only_call(graph: Graph, node: Node, axis: int) -> Follower:
    times = sum(call.name == node.name for call in graph.calls)
    if times != 1:
        return Follower(None, f"{node.name!r} right behind is called {times} times")
    if len([i for i in set(node.inputs) if graph.nodes[i].role != "constant"]) != 1:
        return Follower(None, f"{node.name!r} right behind takes other inputs too")
    unlike = graph.unlike_its_type(node.name, taking=True)
    if unlike is not None:
        return Follower(None, f"{node.name!r} right behind: {unlike}")
    return Follower(node.name, "nothing in between", axis)


def cancelling_norm(graph: Graph, name: str) -> str | None:
    """The BatchNorm or InstanceNorm that undoes every per-channel scale of a layer, or None.

    Each path from the layer must reach one through operations that commute with a positive scale of each channel.
    Where several norms do it together, the first is named.
    """
    todo = [(i, along(graph.nodes[i].shape, channel_axis(graph.nodes[i]))) for i in graph.results(name)]
    seen: set[int] = set()
    norms: list[int] = []
    while todo:
        index, pattern = todo.pop()
        if index in graph.outputs or not graph.consumers[index]:
            return None
        for user in set(graph.consumers[index]) - seen:
            seen.add(user)
            node = graph.nodes[user]
            if node.role == "discrete" and user in graph.dead:  # the places of a maximum that nobody asks for
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
    if node.name in JOINS:  # beside what others bring, the channels are cancelled all the same
        shapes = [graph.nodes[i].shape for i in node.inputs]
        return joined([pattern if i == source else None for i in node.inputs], shapes, joining_axis(node))
    if len([i for i in set(node.inputs) if graph.nodes[i].role != "constant"]) != 1:
        return None
    if node.name in PRODUCTS:
        return aligned(pattern, len(node.shape))
    try:
        return passed(node, before.shape, pattern)
    except DoesNotCommuteError:
        return None


def _varies_but(pattern: Tensor, axis: int) -> bool:
    return varies(pattern, [dim for dim in range(pattern.dim()) if dim != axis])
