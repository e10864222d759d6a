"""Find the channel gates of a network by shape and dependence; no operator's name makes one.

A gate is a product of two values that depend on the data: one is a map, the other has one number per sample and channel
((N, C, 1, 1), (N, 1, 1, C), (N, C, 1) ...) and was reduced from a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from stripefold.onnx.channel_axis import axis_downstream, axis_upstream
from stripefold.onnx.factors import compact, ending, extents, is_normalising, pooled_operand, reduces_a_map
from stripefold.onnx.shapes import ValueShapes
from stripefold.onnx.values import ancestors, data_dependent


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One product of a map and a factor per channel that depends on the data. Values are meant by their names.

    Attributes:
        name: unique: the node's name, or that of what it computes.
        kind: the operation that ends the factor (Sigmoid, HardSigmoid ...), for reading only.
        product: what the multiplication gives.
        factor: the factor as it is given to the multiplication.
        operand: which input of the multiplication that is.
        scaled: the map.
        axis: channel axis of the product, from 0.
        rank: number of axes of the product.
        channels: C.
        depth: place among the operations, 0 to 1.
    """

    name: str
    kind: str
    product: str
    factor: str
    operand: int
    scaled: str
    axis: int
    rank: int
    channels: int
    depth: float


@dataclass(frozen=True)
class Other:
    """A product of two values that depend on the data and is no channel gate, with the reason."""

    name: str
    shape: tuple[int, ...]
    factor: tuple[int, ...]
    why: str


def find_gates(model: ir.Model, shapes: ValueShapes) -> tuple[list[Gate], list[Other]]:
    """Look at every product of a network.

    Args:
        model: only read.
        shapes: of one run; more than one position per map.

    Returns:
        The gates in the order of computation, and the products that are none.
    """
    dependent = data_dependent(model)
    alive = {id(value) for output in model.graph.outputs for value in ancestors(output)}
    nodes = list(model.graph)
    gates: list[Gate] = []
    others: list[Other] = []
    names: dict[str, int] = {}
    for index, node in enumerate(nodes):
        if not _is_product(node, dependent) or id(node.outputs[0]) not in alive:
            continue
        name = node.name or node.outputs[0].name or f"node {index}"
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}#{names[name]}"
        found = _judged(model, node, shapes, dependent)
        if isinstance(found, _Found):
            depth = index / max(1, len(nodes) - 1)
            gates.append(found.gate(name, node, shapes, depth))
        else:
            factor = min((shapes.get(v.name or "", ()) for v in node.inputs if v is not None), key=math.prod)
            others.append(Other(name, shapes.get(node.outputs[0].name or "", ()), factor, found))
    return gates, others


@dataclass(frozen=True)
class _Found:
    operand: int
    factor: ir.Value  # before it was widened to the map's shape
    axis: int

    def gate(self, name: str, node: ir.Node, shapes: ValueShapes, depth: float) -> Gate:
        product, given, scaled = node.outputs[0], node.inputs[self.operand], node.inputs[1 - self.operand]
        assert product.name and given is not None and given.name and scaled is not None and scaled.name  # noqa: PT018
        shape = shapes[product.name]
        return Gate(
            name=name,
            kind=ending(self.factor),
            product=product.name,
            factor=self.factor.name or given.name,
            operand=self.operand,
            scaled=scaled.name,
            axis=self.axis,
            rank=len(shape),
            channels=shape[self.axis],
            depth=depth,
        )


def _is_product(node: ir.Node, dependent: set[str]) -> bool:
    if node.op_type not in ("Mul", "Div") or node.domain != "" or len(node.inputs) != 2:
        return False
    return all(value is not None and value.name in dependent for value in node.inputs)


def _judged(model: ir.Model, node: ir.Node, shapes: ValueShapes, dependent: set[str]) -> _Found | str:
    """The gate that a product is, or why it is none."""
    first, second = (compact(value, shapes) for value in node.inputs if value is not None)
    shape = shapes.get(node.outputs[0].name or "", ())
    full = extents(shape, len(shape))
    axes = [extents(shapes.get(value.name or "", ()), len(shape)) for value in (first, second)]
    operand = 1 if len(axes[0]) >= len(axes[1]) else 0
    factor, scaled = (second, first) if operand else (first, second)
    if axes[1 - operand] != full:
        return "an outer product: neither factor has the shape of the result"
    if axes[operand] == full:
        pooled = pooled_operand(first, second, shape, shapes)
        if pooled is None:
            return "element by element: the factor has the shape of the map"
        operand, axes[pooled] = pooled, (1,)
        factor, scaled = (second, first) if operand else (first, second)
    if node.op_type == "Div" or is_normalising(model, factor):
        return "a normalisation: the factor is one over a size of the map itself"
    axis = _channel_axis(node, scaled, [each for each in axes[operand] if each], shapes)
    if isinstance(axis, str):
        return axis
    if not reduces_a_map(factor, shapes, dependent):
        return "not reduced from a feature map: its factor comes from another input"
    return _Found(operand, factor, axis)


def _channel_axis(node: ir.Node, scaled: ir.Value, axes: list[int], shapes: ValueShapes) -> int | str:
    """The axis along which a factor differs, if that is the channels'; else why not."""
    if not axes:
        return "one number for a whole sample"
    rank = len(shapes[node.outputs[0].name or ""])
    channel = axis_upstream(scaled, shapes)
    if channel is None:
        channel = axis_downstream(node.outputs[0], shapes)
    if channel is not None and channel not in axes:
        return "a spatial gate: one number for each position, the same for every channel"
    if len(axes) > 1:
        return "a gate of every channel that differs over positions or branches too"
    if channel is None and (rank < 3 or axes[0] not in (1, rank - 1)):
        return "channels that lie on an unusual axis, or positions"
    if channel is None and rank == 3:
        return "no layer beside it says which axis holds the channels"
    return axes[0]
