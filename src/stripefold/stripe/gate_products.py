"""Which multiplications of a trace are channel gates, and what the others are.

A product is looked at through its two factors. The *scaled* one has the product's full shape; the other, seen without
the dimensions that broadcasting made, tells the kind:

- (N, C, 1, 1), (N, 1, C) ...: samples and channels only, and reduced from a feature map: a channel gate;
- (N, K, C, 1, 1) with the product summed over K: a gate that weighs K branches (SK, ResNeSt);
- anything else that depends on the image: a spatial gate, a gate per position, an element by element product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import (
    BATCHED_PRODUCTS,
    CHOICES,
    CONVOLUTIONS,
    DIVISIONS,
    FUSED_PRODUCTS,
    GATE_LIKE,
    PERMUTATIONS,
    POOLINGS,
    PRODUCTS,
    REARRANGING,
    REDUCTIONS,
    VIEWS,
    WHOLE_VIEWS,
    WITH_WEIGHT,
)
from stripefold.stripe.gate_axes import LayerAxes, axis_downstream, axis_upstream
from stripefold.stripe.homogeneity import is_normalisation


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
        if node.kind == "layer" or node.name in WITH_WEIGHT:
            yield from _with_computed_weight(graph, index)
        elif node.kind == "operation" and node.name in PRODUCTS | GATE_LIKE:
            yield from _of_operation(graph, index, layer_axes)


def _of_operation(graph: Graph, index: int, layer_axes: LayerAxes) -> Iterator[Product]:
    node = graph.nodes[index]
    operands = node.inputs[1:] if node.name in FUSED_PRODUCTS else node.inputs
    factors = [i for i in operands if _depends_on_a_map(graph, i)]
    if node.name in CHOICES:
        yield from _chosen(graph, index, layer_axes)
    elif len(factors) != 2 or not any(graph.nodes[i].role == "activation" for i in factors):
        yield from _beside_unseen(graph, index, operands)
    elif node.name in PRODUCTS:
        yield _judged(graph, index, factors, layer_axes)
    else:
        yield from _gate_like(graph, index, factors, layer_axes)


def affine_sum(graph: Graph, product: Product, layer_axes: LayerAxes) -> int:
    """The sum v x + b of a gate's product and a summand per channel that depends on the image, or -1.

    Args:
        graph: of a trace.
        product: a channel gate.
        layer_axes: the channel axis of each layer.
    """
    users = graph.consumers[product.node]
    node = graph.nodes[users[0]] if len(users) == 1 else None
    if node is None or node.name != "add" or node.arguments.get("alpha") != 1 or len(node.inputs) != 2:
        return -1
    beside = sum(node.inputs) - product.node
    if node.shape != graph.nodes[product.node].shape or not _depends_on_a_map(graph, beside):
        return -1
    found = _judged(graph, users[0], [product.node, beside], layer_axes)
    # The same axes: one number per sample and channel.
    plain = not found.why and found.scaled == product.node and found.axis == product.axis and found.split == 1
    return users[0] if plain else -1


def _depends_on_a_map(graph: Graph, index: int) -> bool:
    """Whether a value is a feature map or computed from one; a comparison with a threshold is, too (a hard gate)."""
    role = graph.nodes[index].role
    return role == "activation" or (
        role == "integer_dependent" and bool(graph.values_upstream[index] & graph.activations)
    )


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
    if node.name not in PERMUTATIONS:
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
    if name in BATCHED_PRODUCTS:
        diagonal = next((i for i in factors if _is_diagonal(graph, i)), None)
        if diagonal is not None:
            found = Product(node=index, scaled=sum(factors) - diagonal, factor=diagonal)
            yield _refused(found, "a product with a diagonal matrix, inside a matrix multiplication")
        return
    found = _judged(graph, index, factors, layer_axes)
    if found.why:
        if name != "add":
            yield found
    elif name == "add":
        yield _refused(found, "an additive gate: one summand per channel, which multiplies nothing (GC)")
    else:
        yield _refused(found, f"a product and a sum in one operation ({name}): write them as two")


def _chosen(graph: Graph, index: int, layer_axes: LayerAxes) -> Iterator[Product]:
    """A choice between two values, or a blend of them, by one number per channel (or position) of each image."""
    node = graph.nodes[index]
    by = node.inputs[0] if node.name == "where" else node.inputs[-1]
    if node.name == "masked_fill":
        by = node.inputs[1] if len(node.inputs) > 1 else node.inputs[0]
    maps = [i for i in node.inputs if i != by and graph.nodes[i].role == "activation"]
    if not maps or not _depends_on_a_map(graph, by):
        return
    rank = len(node.shape)
    if extents(graph.nodes[compact(graph, by)].shape, rank) == extents(node.shape, rank):
        return  # element by element, as a ReLU is written
    verb = "blends two values (lerp)" if node.name == "lerp" else f"chooses between two values ({node.name})"
    found = Product(node=index, scaled=maps[0], factor=by)
    yield _refused(found, f"it {verb} instead of multiplying one: write it as a product, x * v")


def _beside_unseen(graph: Graph, index: int, operands: Sequence[int]) -> Iterator[Product]:
    """A map times one row of numbers per image that torch did not compute: it came through numpy, say."""
    rank = len(graph.nodes[index].shape)
    maps = [i for i in operands if graph.nodes[i].role == "activation"]
    others = [i for i in operands if graph.nodes[i].role == "constant"]
    if len(maps) != 1 or len(others) != 1 or rank < 2:
        return
    along = extents(graph.nodes[compact(graph, others[0])].shape, rank)
    if 0 in along and along != extents(graph.nodes[index].shape, rank) and _came_from_outside(graph, others[0]):
        yield _refused(
            Product(node=index, scaled=maps[0], factor=others[0]),
            "its factor has a row for every image, and torch did not compute it: it came through numpy or Python, "
            "where nobody sees if it depends on the image. Compute it with torch",
        )


def _came_from_outside(graph: Graph, index: int) -> bool:
    """Whether a tensor upstream of a constant is none of the model's and was not made by an operation."""
    own = set(graph.tensors.values())
    upstream = graph.values_upstream[index]
    while upstream:
        low = upstream & -upstream
        i = low.bit_length() - 1
        node = graph.nodes[i]
        if node.kind == "constant" and not node.name and not node.owners and i not in own:
            return True
        upstream ^= low
    return False


def _with_computed_weight(graph: Graph, index: int) -> Iterator[Product]:
    """A convolution or a norm whose weight is computed from the image: dynamic convolution, conditional norms."""
    node = graph.nodes[index]
    names = node.inner if node.kind == "layer" else (node.name,)
    if len(names) != 1 or names[0] not in WITH_WEIGHT or len(node.inputs) < 2 or node.position:
        return
    map_, weight = node.inputs[:2]
    if not (_depends_on_a_map(graph, map_) and _depends_on_a_map(graph, weight)):
        return
    found = Product(node=index, scaled=map_, factor=weight)
    if names[0] == "linear" or names[0] in CONVOLUTIONS:
        yield _refused(found, f"one kernel per image ({names[0]} with a computed weight), not one number per channel")
    else:
        yield _refused(found, f"a norm whose weight is computed from the image ({names[0]}): no product of its own")


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
    divided = graph.nodes[index].name in DIVISIONS
    if divided and factor == first:
        return _refused(found, "a division by the map itself")
    normalised = is_normalisation(graph, scaled, factor, divided=divided)
    if normalised:
        return _refused(found, "a normalisation: the factor is one over a size of the map itself")
    if normalised is None:
        return _refused(found, "a power whose exponent is a tensor: a normalisation, perhaps. Write it as a number")
    gate = _gate(graph, found, set(axes[factor]) - {0}, layer_axes)
    if divided and not gate.why:
        return _refused(found, "a gate written as a division, x / w: write it as a product, x * (1 / w)")
    return gate


def _gate(graph: Graph, found: Product, axes: set[int], layer_axes: LayerAxes) -> Product:
    node = graph.nodes[found.node]
    if not axes:
        return _refused(found, "one number for a whole sample")
    channel = axis_upstream(graph, found.scaled, layer_axes)
    if channel is None:
        channel = axis_downstream(graph, found.node, layer_axes)
    if channel is not None and channel not in axes:
        return _refused(found, "a spatial gate: one number for each position, the same for every channel")
    summed = _summed_axis(graph, found.node) if len(axes) == 2 else None
    split = node.shape[summed] if summed in axes and summed is not None else 1
    if split > 1 and _shows_one_value_often(graph, found.scaled):
        return _refused(found, "one kernel per image: it weighs neighbours in one map, not whole branches")
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
    upstream = graph.values_upstream[factor]
    return any(upstream >> user & 1 and graph.nodes[user].name in POOLINGS for user in graph.consumers[scaled])


def _shows_one_value_often(graph: Graph, index: int) -> bool:
    """Whether a value is made of windows or shifted copies of others: it has more elements than all that it shows."""
    shown: set[int] = set()
    seen: set[int] = set()
    todo = [index]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        node = graph.nodes[current]
        if node.kind == "operation" and node.name in REARRANGING:
            todo.extend(node.inputs)
        else:
            shown.add(current)
    return graph.nodes[index].unbroadcast_numel > sum(graph.nodes[i].unbroadcast_numel for i in shown)


def _reduces_a_map(graph: Graph, index: int) -> bool:
    """Whether anything upstream of a factor has positions beside samples and channels."""
    upstream = graph.values_upstream[index] & graph.activations
    while upstream:
        low = upstream & -upstream
        shape = graph.nodes[low.bit_length() - 1].shape
        if sum(size > 1 for size in shape[1:]) > 1:
            return True
        upstream ^= low
    return False


def _summed_axis(graph: Graph, index: int) -> int | None:
    """The dimension over which the only consumer sums a product up, or None."""
    users = set(graph.consumers[index])
    if len(users) != 1:
        return None
    node = graph.nodes[users.pop()]
    dims = node.arguments.get("dim")
    if node.name not in REDUCTIONS or not dims or len(dims) != 1:
        return None
    return int(dims[0]) % len(graph.nodes[index].shape)
