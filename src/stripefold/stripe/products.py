"""Which multiplications of a trace are channel gates, and what the others are.

A product is looked at through its two factors. The *scaled* one has the product's full shape; the other, seen without
the dimensions that broadcasting made, tells the kind:

- (N, C, 1, 1), (N, 1, C) ...: samples and channels only, and reduced from a feature map: a channel gate;
- (N, K, C, 1, 1) with the product summed over K: a gate that weighs K branches (SK, ResNeSt);
- anything else that depends on the image: a spatial gate, a gate per position, an element by element product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stripefold.stripe.axes import LayerAxes, axis_ahead, axis_behind
from stripefold.surgery.graph import Graph
from stripefold.surgery.operations import VIEWS, WHOLE_VIEWS

_JUDGED = frozenset({"mul", "div", "addcmul", "add", "bmm", "baddbmm"})
# Functions that end a normalisation's own factor: one over a size measured on the map itself.
_INVERSES = frozenset({"rsqrt", "reciprocal"})


@dataclass(frozen=True, kw_only=True)
class Product:
    """One multiplication of two values that both depend on the image.

    Attributes:
        node: The product.
        scaled: Its factor of full shape, or -1.
        factor: The other one.
        axis: Channel axis of the scaled value, where this is a gate.
        split: Number of branches that the gate weighs.
        why: Why it is no channel gate; "" where it is one.
    """

    node: int
    scaled: int
    factor: int
    axis: int = -1
    split: int = 1
    why: str = ""


def products(graph: Graph, layer_axes: LayerAxes) -> Iterator[Product]:
    """Every multiplication of two activations, and what does a gate's work without being one, in order."""
    for index, node in enumerate(graph.nodes):
        if node.kind != "operation" or node.name not in _JUDGED:
            continue
        operands = node.inputs[1:] if node.name == "addcmul" else node.inputs
        factors = [i for i in operands if graph.nodes[i].role == "activation"]
        if len(factors) != 2:
            continue
        if node.name in ("mul", "div"):
            yield _judged(graph, index, factors, layer_axes)
        else:
            yield from _gate_like(graph, index, factors, layer_axes)


def compact(graph: Graph, index: int) -> int:
    """The value before it was expanded to the shape of its partner."""
    node = graph.nodes[index]
    while node.name == "expand" and len(node.inputs) == 1:
        index = node.inputs[0]
        node = graph.nodes[index]
    return index


def keeps_order(graph: Graph, index: int) -> bool:
    """Whether a value is nothing but a view of its one input that shows all elements, in their order."""
    node = graph.nodes[index]
    if node.kind != "operation" or node.name not in WHOLE_VIEWS or len(node.inputs) != 1:
        return False
    if node.name not in ("permute", "transpose", "t", "movedim"):
        return True
    # Dimensions of one element may go anywhere.
    before = graph.nodes[node.inputs[0]].shape
    return [size for size in before if size > 1] == [size for size in node.shape if size > 1]


def extents(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The axes of a value of ``rank`` dimensions along which a factor of this shape differs."""
    lead = rank - len(shape)
    return tuple(lead + axis for axis, size in enumerate(shape) if size > 1)


def _gate_like(graph: Graph, index: int, factors: list[int], layer_axes: LayerAxes) -> Iterator[Product]:
    """What would be a channel gate if it were a multiplication of its own: sums, fused and matrix products."""
    name = graph.nodes[index].name
    if name in ("bmm", "baddbmm"):
        diagonal = next((i for i in factors if _is_diagonal(graph, i)), None)
        if diagonal is not None:
            found = Product(node=index, scaled=sum(factors) - diagonal, factor=diagonal)
            yield _refused(found, "a product with a diagonal matrix, inside a matrix multiplication")
        return
    found = _judged(graph, index, factors, layer_axes)
    if found.why:
        if name == "addcmul":
            yield found
    elif name == "add":
        yield _refused(found, "an additive gate: one summand per channel, which multiplies nothing (GC)")
    else:
        yield _refused(found, "a product and a sum in one operation (addcmul): write them as two")


def _is_diagonal(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    while node.kind == "operation" and node.name in VIEWS and len(node.inputs) == 1:
        node = graph.nodes[node.inputs[0]]
    return node.name == "diag_embed"


def _judged(graph: Graph, index: int, factors: list[int], layer_axes: LayerAxes) -> Product:
    first, second = factors
    shape = graph.nodes[index].shape
    rank = len(shape)
    axes = {i: extents(graph.nodes[compact(graph, i)].shape, rank) for i in (first, second)}
    full = extents(shape, rank)
    scaled, factor = (first, second) if len(axes[first]) >= len(axes[second]) else (second, first)
    found = Product(node=index, scaled=scaled, factor=factor)
    if axes[scaled] != full:
        return _refused(found, "an outer product: neither factor has the shape of the result")
    if axes[factor] == full and not _is_pooled_pair(graph, scaled, factor):
        return _refused(found, "element by element: the factor has the shape of the map")
    if graph.nodes[index].name == "div" or _is_normalising(graph, factor):
        return _refused(found, "a normalisation: the factor is one over a size of the map itself")
    return _gate(graph, found, set(axes[factor]) - {0}, layer_axes)


def _gate(graph: Graph, found: Product, axes: set[int], layer_axes: LayerAxes) -> Product:
    node = graph.nodes[found.node]
    if not axes:
        return _refused(found, "one number for a whole sample")
    channel = axis_behind(graph, found.scaled, layer_axes)
    if channel is None:
        channel = axis_ahead(graph, found.node, layer_axes)
    if channel is not None and channel not in axes:
        return _refused(found, "a spatial gate: one number for each position, the same for every channel")
    summed = _summed_axis(graph, found.node) if len(axes) == 2 else None
    split = node.shape[summed] if summed in axes and summed is not None else 1
    if split > 1:
        axes = axes - {summed}
    axis = next(iter(axes))
    if len(axes) > 1:
        return _refused(found, "a gate of every channel that differs over positions too")
    if split == 1 and channel is None and len(node.shape) == 4 and axis != 1:
        return _refused(found, "a spatial gate, or channels that lie on an unusual axis")
    if not _reduces_a_map(graph, found.factor):
        return _refused(found, "not reduced from a feature map: its factor comes from another input")
    return Product(node=found.node, scaled=found.scaled, factor=found.factor, axis=axis, split=split)


def _refused(found: Product, why: str) -> Product:
    return Product(node=found.node, scaled=found.scaled, factor=found.factor, why=why)


def _is_pooled_pair(graph: Graph, scaled: int, factor: int) -> bool:
    """Whether the factor of a map of one position was pooled from it: (N, C, 1, 1) times (N, C, 1, 1)."""
    shape = graph.nodes[scaled].shape
    if len(shape) < 3 or any(size > 1 for size in shape[2:]):
        return False
    behind = graph.values_behind[factor]
    pools = ("mean", "sum", "amax", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d")
    return any(behind >> user & 1 and graph.nodes[user].name in pools for user in graph.consumers[scaled])


def _is_normalising(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    while node.kind == "operation" and node.name in VIEWS and node.inputs:
        node = graph.nodes[node.inputs[0]]
    if node.name == "pow":
        exponent = node.arguments.get("exponent")
        return isinstance(exponent, (int, float)) and exponent < 0
    return node.name in _INVERSES


def _reduces_a_map(graph: Graph, index: int) -> bool:
    """Whether anything behind a factor has positions beside samples and channels."""
    behind = graph.values_behind[index] & graph.activations
    while behind:
        low = behind & -behind
        shape = graph.nodes[low.bit_length() - 1].shape
        if sum(size > 1 for size in shape[1:]) > 1:
            return True
        behind ^= low
    return False


def _summed_axis(graph: Graph, index: int) -> int | None:
    """The dimension over which the only consumer sums a product up, or None."""
    users = set(graph.consumers[index])
    if len(users) != 1:
        return None
    node = graph.nodes[users.pop()]
    dims = node.arguments.get("dim")
    if node.name not in ("sum", "mean") or not dims or len(dims) != 1:
        return None
    return int(dims[0]) % len(graph.nodes[index].shape)
