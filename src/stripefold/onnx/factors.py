"""What a factor of a product is: its extents, what it was reduced from, and whether it normalises."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from stripefold.onnx.operator_names import POOLS, VIEWS, WIDENING
from stripefold.onnx.shapes import ValueShapes
from stripefold.onnx.values import ancestors, constant

# Needed only where a map has a single position, so that shapes cannot tell what was pooled.
_POOLINGS = POOLS | {"GlobalLpPool", "ReduceMean", "ReduceSum", "ReduceMax"}
_FACTOR_KINDS_LOOKED_THROUGH = 8


def compact(value: ir.Value, shapes: ValueShapes) -> ir.Value:
    """The value before it was widened to the shape of its partner."""
    node = value.producer()
    while node is not None and node.op_type in WIDENING and node.inputs[0] is not None:
        before, after = shapes.get(node.inputs[0].name or "", ()), shapes.get(value.name or "", ())
        kept = set(extents(before, len(after)))
        same = all(before[axis - len(after)] == after[axis] for axis in kept if len(after) - axis <= len(before))
        if len(before) > len(after) or not same or not kept < set(extents(after, len(after))):
            return value
        value = node.inputs[0]
        node = value.producer()
    return value


def extents(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The axes of a value of ``rank`` dimensions along which a factor of this shape differs."""
    lead = rank - len(shape)
    return tuple(lead + axis for axis, size in enumerate(shape) if size > 1)


def pooled_operand(first: ir.Value, second: ir.Value, shape: tuple[int, ...], shapes: ValueShapes) -> int | None:
    """Which factor of (N, C, 1, 1) times (N, C, 1, 1) was pooled from the other."""
    if len(shape) < 3 or any(size > 1 for size in shape[2:]):
        return None
    for operand, factor, scaled in ((1, second, first), (0, first, second)):
        pools = {id(node.outputs[0]) for node in scaled.consumers() if node.op_type in _POOLINGS}
        if any(id(value) in pools for value in ancestors(factor)):
            return operand
    return None


def is_normalising(model: ir.Model, value: ir.Value) -> bool:
    """Whether a factor is one over something, as that of a normalisation is."""
    for node in _factor_nodes(model, value):
        if node.op_type in ("Reciprocal", "Rsqrt"):
            return True
        if node.op_type == "Div" and constant(model, node.inputs[0]) is not None:
            return True
        if node.op_type == "Pow":
            power = constant(model, node.inputs[1])
            return power is not None and bool((power < 0).all())
    return False


def _factor_nodes(model: ir.Model, value: ir.Value) -> Iterator[ir.Node]:
    """The operations that end a factor, through views, roots, and products and quotients with constants."""
    for _ in range(_FACTOR_KINDS_LOOKED_THROUGH):
        node = value.producer()
        if node is None:
            return
        yield node
        inputs = [each for each in node.inputs if each is not None]
        if node.op_type in ("Mul", "Div"):
            inputs = [each for each in inputs if constant(model, each) is None]
            if len(inputs) != 1:
                return
        elif node.op_type not in VIEWS | {"Sqrt", "Neg"}:
            return
        value = inputs[0]


def ending(value: ir.Value) -> str:
    """The operation that ends a factor, for reading only."""
    node = value.producer()
    while node is not None and node.op_type in VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return "input" if node is None else node.op_type


def reduces_a_map(factor: ir.Value, shapes: ValueShapes, dependent: set[str]) -> bool:
    """Whether anything behind a factor has positions beside samples and channels."""
    for value in ancestors(factor):
        shape = shapes.get(value.name or "", ())
        if value.name in dependent and sum(size > 1 for size in shape[1:]) > 1:
            return True
    return False
