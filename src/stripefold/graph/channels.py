"""On which axis the channels of every value lie: by what operations do with an axis, never by its size.

Channels start where a layer makes features (axis 1 behind a convolution, the last behind a linear layer) and are
followed through what moves them. A layer that mixes another axis than its input's channels mixes positions, and leaves
the channels where they are; a normalisation or a scale leaves them anyway.
"""

from __future__ import annotations

from stripefold.graph.graph import Graph, Node
from stripefold.graph.operation_names import CHANNELS_SECOND, KEEP_AXES, MATRIX_PRODUCTS, MIXING, STACKS, is_batch_norm
from stripefold.graph.operation_table import StoppedError, operation
from stripefold.graph.patterns import index_along, pattern_along

_ATTENTION = "scaled_dot_product"


def channel_axis(layer: Node) -> int:
    """The channel axis of what a layer returned, from 0 up.

    It is 1 for everything that convolves or normalises per channel, and where dimensions were permuted on the way in
    and out (a LayerNorm over channels); otherwise it is the last.
    """
    rank = len(layer.shape)
    second = any(name in CHANNELS_SECOND or is_batch_norm(name) for name in layer.inner)
    permuted = "permute" in layer.inner and any("norm" in name for name in layer.inner)
    return 1 if (second or permuted) and rank > 1 else max(rank - 1, 0)


def axis_after(graph: Graph, source: int, user: int, axis: int) -> int | None:
    """Where an operation puts the channel axis of one of its operands, or None where it mixes or loses it.

    Args:
        graph: of a trace.
        source: the operand.
        user: the operation's result.
        axis: the channel axis of the operand, from 0.
    """
    before, node = graph.nodes[source], graph.nodes[user]
    rank, after = len(before.shape), len(node.shape)
    if node.pointwise:
        return axis + after - rank
    if node.name in KEEP_AXES or is_batch_norm(node.name):
        return axis if rank == after else None
    if node.name in MATRIX_PRODUCTS or _ATTENTION in node.name:
        return _after_matrices(node, source, axis, rank)
    if node.name in STACKS:
        return _after_stack(node, axis, after, rank)
    if "keepdim" in node.arguments:
        return _after_reduction(node, axis, rank)
    return _after_moves(before, node, axis)


def _after_matrices(node: Node, source: int, axis: int, rank: int) -> int | None:
    """Rows come from the first operand, columns from the last; what is summed over is gone."""
    if len(node.shape) != rank or len(set(node.inputs)) != len(node.inputs):
        return None
    first, last = axis == rank - 2, axis == rank - 1
    columns = node.inputs[2] if _ATTENTION in node.name else node.inputs[1]
    lost = (source == node.inputs[0] and last) or (source == columns and first)
    return None if lost or source not in (node.inputs[0], columns) else axis


def _after_stack(node: Node, axis: int, after: int, rank: int) -> int | None:
    dim = int(node.arguments["dim"]) % max(after, rank)
    if node.name == "stack":
        return axis + (dim <= axis)
    return None if dim == axis else axis - (dim < axis)


def _after_reduction(node: Node, axis: int, rank: int) -> int | None:
    given = node.arguments.get("dim")
    dims = {int(dim) % rank for dim in ([given] if isinstance(given, int) else given or range(rank))}
    if axis in dims:
        return None
    return axis if node.arguments["keepdim"] else axis - sum(dim < axis for dim in dims)


def _after_moves(before: Node, node: Node, axis: int) -> int | None:
    """Through operations that move elements: the axis along which the same numbers lie in the same order."""
    channels = before.shape[axis]
    try:
        pattern = operation(node, "scale").layout.ahead(node, before.shape, pattern_along(before.shape, axis))
    except StoppedError:
        return None
    if channels == 1:  # nothing to tell it by, and no difference where it lies
        return axis if axis < len(node.shape) and node.shape[axis] == 1 else None
    for candidate, size in enumerate(node.shape):
        if size == channels and index_along(pattern, node.shape, candidate) == tuple(range(channels)):
            return candidate
    return None


def channel_axes(graph: Graph) -> list[int | None]:
    """Per node of a graph the axis of its channels, from 0; None where it is not known."""
    axes: list[int | None] = []
    for index in range(len(graph.nodes)):
        axes.append(_axis(graph, index, axes))
    return axes


def mixes_positions(graph: Graph, index: int, axes: list[int | None]) -> bool:
    """Whether a layer's node acts on another axis than that of its input's channels."""
    node = graph.nodes[index]
    mixes = node.kind == "layer" and not MIXING.isdisjoint(node.inner)
    return mixes and axes[index] is not None and axes[index] != channel_axis(node)


def _axis(graph: Graph, user: int, axes: list[int | None]) -> int | None:
    node = graph.nodes[user]
    if node.kind in ("input", "constant"):
        return None
    known = next((i for i in node.inputs if axes[i] is not None and graph.nodes[i].role == "activation"), None)
    source = None if known is None else graph.nodes[known]
    before = None if known is None else axes[known]
    if node.kind == "layer":
        # A layer changes the axis that it mixes, and leaves the others where they are.
        return before if source is not None and len(source.shape) == len(node.shape) else channel_axis(node)
    return None if known is None or before is None else axis_after(graph, known, user, before)
