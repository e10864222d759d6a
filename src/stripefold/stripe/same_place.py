"""Whether a module gives every element back where it took it, whatever views it computes in between."""

from __future__ import annotations

import math

import torch

from stripefold.graph.channels import axis_after
from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import WHOLE_VIEWS
from stripefold.graph.operation_table import operation


def scaled_axis(graph: Graph, way: tuple[int, int], back: tuple[int, int], axis: int) -> int | None:
    """The axis of what a module is given along which a product inside scales it, where the module does nothing else.

    Args:
        graph: of a trace.
        way: what the module is given, and what the product scales.
        back: the product, and what the module returns.
        axis: the channel axis of the product.

    Returns:
        None where what it returns is not what it was given, element by element in its place, times the factor.
    """
    inside, outside = _views(graph, *way), _views(graph, *back)
    if inside is None or outside is None or not _undone(graph, way[0], inside + outside):
        return None
    channels = graph.nodes[back[0]].shape[axis]
    sizes = graph.nodes[way[0]].shape
    return next((a for a, n in enumerate(sizes) if n == channels and _carried(graph, inside, a) == axis), None)


def _views(graph: Graph, early: int, late: int) -> list[tuple[int, int]] | None:
    """The views that keep every element through which one value is seen as another: (before, after), in order."""
    steps: list[tuple[int, int]] = []
    while late != early:
        node = graph.nodes[late]
        if node.kind != "operation" or node.name not in WHOLE_VIEWS or len(node.inputs) != 1:
            return None
        steps.append((node.inputs[0], late))
        late = node.inputs[0]
    return steps[::-1]


def _undone(graph: Graph, given: int, steps: list[tuple[int, int]]) -> bool:
    """Whether views, one after the other, leave every element of a value where it was."""
    if not steps:
        return True
    shape = graph.nodes[given].shape
    start = torch.arange(math.prod(shape), device="cpu").view(shape)
    now = start
    for before, after in steps:
        node = graph.nodes[after]
        now = operation(node, "scale").layout.ahead(node, graph.nodes[before].shape, now).expand(node.shape)
    return torch.equal(now, start)


def _carried(graph: Graph, steps: list[tuple[int, int]], axis: int) -> int | None:
    """Where views put an axis."""
    found: int | None = axis
    for before, after in steps:
        found = None if found is None else axis_after(graph, before, after, found)
    return found
