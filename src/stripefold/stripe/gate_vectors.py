"""Read a gate's scale vectors off the tensor that carries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from stripefold.errors import ObserveError
from stripefold.graph.graph import Graph
from stripefold.graph.operation_names import MULTIPLICATIONS
from stripefold.stripe.gate_products import compact, extents

if TYPE_CHECKING:
    from stripefold.stripe.discover import ChannelGate


@dataclass(frozen=True)
class Signature:
    """What tells one product from another by shapes alone, the batch apart.

    Attributes:
        rank: Dimensions of the product.
        axes: The axes along which the smaller factor differs.
        sizes: Its size there.
    """

    rank: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]


def signature(first: tuple[int, ...], second: tuple[int, ...]) -> Signature:
    """The signature of a product, of the shapes of its factors without broadcast dimensions."""
    rank = max(len(first), len(second))
    smaller = min((first, second), key=lambda shape: (len(_axes(shape, rank)), len(shape)))
    axes = _axes(smaller, rank)
    return Signature(rank, axes, tuple(smaller[axis - rank] for axis in axes))


def traced_signature(graph: Graph, index: int) -> Signature:
    """The signature of a product in a trace."""
    first, second = graph.nodes[index].inputs[-2:]
    return signature(graph.nodes[compact(graph, first)].shape, graph.nodes[compact(graph, second)].shape)


class Expected:
    """How a gate's product is recognised among those of the module in which it stands.

    Attributes:
        signature: By shape.
        position: How many products of that shape run before it in the call.
        of_its_kind: How many run in the call.
        factor: Whether the first or the second factor is the gate.
    """

    def __init__(self, graph: Graph, gate: ChannelGate) -> None:
        self.signature: Signature = traced_signature(graph, gate.product)
        calls = [v for v in graph.module_calls_of.get(gate.where, []) if v.call == gate.where_call]
        first, last = (calls[0].first, calls[0].last) if calls else (0, len(graph.nodes))
        alike = [i for i in range(first, last) if _is_product_in(graph, i, gate.where)]
        alike = [i for i in alike if traced_signature(graph, i) == self.signature]
        self.position = alike.index(gate.product)
        self.of_its_kind = len(alike)
        self.factor = graph.nodes[gate.product].inputs[-2:].index(gate.gate)


def _is_product_in(graph: Graph, index: int, where: str) -> bool:
    node = graph.nodes[index]
    return node.kind != "layer" and node.where == where and node.name in MULTIPLICATIONS and len(node.inputs) > 1


def compact_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor with every dimension that was made by ``expand`` as 1."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(size if stride else min(size, 1) for size, stride in pairs)


def vectors(tensor: Tensor, channels: int, name: str, *, batched: bool = True) -> Tensor:
    """The scale vectors in a tensor, one row per sample; a view where that can be.

    Args:
        tensor: (N, C), (N, C, 1, 1), (N, 1, C), or expanded from such; where not ``batched``, the same numbers without
            a sample axis in front.
        channels: C.
        name: Of the gate, for the error.
        batched: Whether the first axis counts the samples.

    Returns:
        (N, C) in the tensor's own dtype.

    Raises:
        ObserveError: A sample has another number of values than in the trace.
    """
    for dim in range(1, tensor.dim()):
        if tensor.shape[dim] > 1 and tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, 1)
    rows = tensor.shape[0] if batched and tensor.dim() else tensor.numel() // channels
    if tensor.numel() != rows * channels:
        raise ObserveError(
            f"the gate {name!r} changed its shape between batches: {channels} values per image when the model was "
            f"traced, now {tuple(tensor.shape)}. Observe inputs of one kind at a time"
        )
    return tensor.reshape(rows, channels)


def _axes(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(axis for axis in extents(shape, rank) if axis)
