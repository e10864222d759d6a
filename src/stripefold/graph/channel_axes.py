"""Which axis of every value of a trace the channels are on; the axes beside it are positions.

Channels start where a layer makes features (axis 1 behind a convolution, the last behind a linear layer) and are
followed through what moves them. A layer that mixes another axis than its input's channels mixes positions, and leaves
the channels where they are; a normalisation or a scale leaves them anyway.
"""

from __future__ import annotations

from stripefold.graph.channels import axis_after, channel_axis
from stripefold.graph.graph import Graph

_MIXING = frozenset({"linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "convolution"})


def channel_axes(graph: Graph) -> list[int | None]:
    """Per node of a graph the axis of its channels, from 0; None where it is not known."""
    axes: list[int | None] = []
    for index in range(len(graph.nodes)):
        axes.append(_axis(graph, index, axes))
    return axes


def mixes_positions(graph: Graph, index: int, axes: list[int | None]) -> bool:
    """Whether a layer's node acts on another axis than that of its input's channels."""
    node = graph.nodes[index]
    mixes = node.kind == "layer" and not _MIXING.isdisjoint(node.inner)
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
