"""The channel axis of any value of a trace: carried along from the layers upstream, or told by the next one."""

from __future__ import annotations

from collections.abc import Mapping

from stripefold.graph.channels import axis_after, channel_axis
from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import CHANNELS_LAST, CHANNELS_SECOND, is_batch_norm

_LOOKAHEAD = 8
LayerAxes = Mapping[str, int]
"""Layer path -> the channel axis of what it returns, as its rule says; negative ones count from the end"""


def _own_axis(node: Node, layer_axes: LayerAxes) -> int | None:
    """The channel axis that the operation itself tells, or None."""
    if node.kind == "layer":
        known = layer_axes.get(node.name)
        return channel_axis(node) if known is None or not node.shape else known % len(node.shape)
    if node.kind != "operation":
        return None
    if node.name in CHANNELS_SECOND or is_batch_norm(node.name):
        return 1
    return len(node.shape) - 1 if node.name in CHANNELS_LAST else None


def axis_upstream(graph: Graph, index: int, layer_axes: LayerAxes) -> int | None:
    """The channel axis of a value, carried along from the last layers upstream."""
    memo: dict[int, int | None] = {}
    todo = [index]
    while todo:
        current = todo[-1]
        node = graph.nodes[current]
        own = _own_axis(node, layer_axes)
        if current in memo or own is not None or node.kind != "operation":
            memo.setdefault(current, own)
            todo.pop()
            continue
        sources = [i for i in dict.fromkeys(node.inputs) if graph.nodes[i].role == "activation"]
        # The factor of full rank first: a gate is reshaped in ways that hide its channels.
        sources.sort(key=lambda i: -graph.nodes[i].unbroadcast_numel)
        missing = [i for i in sources[:2] if i not in memo]
        if missing:
            todo.append(missing[0])
            continue
        memo[current] = next(
            (a for a in (_carried(graph, memo, i, current) for i in sources[:2]) if a is not None), None
        )
        todo.pop()
    return memo[index]


def _carried(graph: Graph, memo: dict[int, int | None], source: int, user: int) -> int | None:
    axis = memo.get(source)
    if axis is None or axis >= len(graph.nodes[source].shape):
        return None
    return axis_after(graph, source, user, axis)


def axis_downstream(graph: Graph, index: int, layer_axes: LayerAxes) -> int | None:
    """The channel axis that the next layer takes a value to have, or None."""
    for _ in range(_LOOKAHEAD):
        users = sorted(set(graph.consumers[index]))
        if not users:
            return None
        own = _own_axis(graph.nodes[users[0]], layer_axes)
        if own is not None:
            return own if len(graph.nodes[users[0]].shape) == len(graph.nodes[index].shape) else None
        if len(graph.nodes[users[0]].shape) != len(graph.nodes[index].shape):
            return None
        index = users[0]
    return None


def groups_of_samples(graph: Graph, index: int, axis: int, layer_axes: LayerAxes) -> int:
    """How many groups of the channels of one image the first axis of a value counts as samples of their own.

    (N, G C, H, W) seen as (N G, C, H, W): what looks like N G samples of C channels are N samples of G C channels.

    Args:
        graph: Of a trace.
        index: The value.
        axis: Its channel axis.
        layer_axes: See ``axis_upstream``.

    Returns:
        G; 1 where every row is a sample, or a frame of one.
    """
    rows = graph.nodes[index].shape[0]
    channels = graph.nodes[index].shape[axis]
    merged = False
    if graph.fewest_rows >= rows:
        return 1
    while True:
        sources = [i for i in dict.fromkeys(graph.nodes[index].inputs) if graph.nodes[i].role == "activation"]
        if not sources or not graph.nodes[index].shape:
            return 1
        before = max(sources, key=lambda i: graph.nodes[i].unbroadcast_numel)
        shape = graph.nodes[before].shape
        if not merged and shape[:1] == (rows,) and axis < len(shape):
            channels = shape[axis]
        merged = merged or (bool(shape) and shape[0] < rows and rows % shape[0] == 0)
        known = axis_upstream(graph, before, layer_axes) if merged else None
        if known is not None:
            groups = rows // shape[0]
            return groups if shape[known] == groups * channels else 1
        index = before
