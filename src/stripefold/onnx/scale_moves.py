"""A constant scale per channel, and the operations it commutes with in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from stripefold.onnx.operator_names import POOLS, REDUCTIONS
from stripefold.onnx.session import Array
from stripefold.onnx.shapes import ValueShapes, moved_axis, moves_axes
from stripefold.onnx.values import attribute_int, attribute_ints, attribute_text, constant, opset


class CannotFoldError(Exception):
    """Why a scale cannot go further; caught where the ways are tried."""


@dataclass(frozen=True)
class AxisScale:
    """One number per index of one axis.

    Attributes:
        values: (C,) float64.
        axis: from 0.
    """

    values: Array
    axis: int

    def shaped(self, rank: int) -> Array:
        """The numbers so that they broadcast over a value of this rank."""
        return self.values.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])

    def times(self, values: Array, rank: int) -> Array:
        """A constant that is broadcast to a value of this rank, times the scale, with as few axes as that takes."""
        product = values * self.shaped(rank)
        while product.ndim > max(values.ndim, rank - self.axis) and product.shape[0] == 1:
            product = product[0]
        return product


@dataclass(frozen=True)
class Context:
    """The graph that a scale moves in.

    Attributes:
        model: the graph.
        shapes: of every value in one run.
        more: of runs with inputs of other sizes, where the network takes them.
    """

    model: ir.Model
    shapes: ValueShapes
    more: Sequence[ValueShapes] = ()

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The shape of a value as it was seen.

        Raises:
            CannotFoldError: it was not.
        """
        found = None if value is None else self.shapes.get(value.name or "")
        if found is None:
            raise CannotFoldError("a value without a known shape")
        return found

    @property
    def runs(self) -> tuple[ValueShapes, ...]:
        """Shapes of every run, the one with the given sizes first."""
        return (self.shapes, *self.more)

    def constant(self, value: ir.Value | None) -> Array | None:
        """The numbers of a constant, or None."""
        return constant(self.model, value)


_LINEAR = frozenset({"Identity", "Neg", "AveragePool", "GlobalAveragePool", "Dropout"})
_POSITIVE = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "GlobalMaxPool", "Abs"})


def through(context: Context, node: ir.Node, scale: AxisScale, *, back: bool) -> AxisScale:
    """The scale on the other side of an operation that commutes with it.

    Args:
        context: the graph.
        node: its first input and its first output are the two sides.
        scale: on the one side.
        back: it is on the output's side.

    Raises:
        CannotFoldError: the operation does not commute with the scale.
    """
    kind, where = node.op_type, label(node)
    before, after = context.shape(node.inputs[0]), context.shape(node.outputs[0])
    if node.domain != "" or any(output.uses() for output in node.outputs[1:]):
        raise CannotFoldError(f"{where} is no operation that is known to commute with a scale")
    if moves_axes(node):
        axis = moved_axis(node, scale.axis, context.runs, back=back)
        if axis is None:
            raise CannotFoldError(f"{where} takes the channels apart, or depends on the size of the input")
        return AxisScale(scale.values, axis)
    known = kind in _LINEAR or (kind in _POSITIVE and _not_negative(scale)) or _other(context, node, scale)
    if kind in _POSITIVE and not known:
        raise CannotFoldError(f"{where} does not commute with a negative constant")
    if not known:
        raise CannotFoldError(f"{where} does not commute with a scale")
    pooled = kind in POOLS and scale.axis != 1
    if pooled or len(before) != len(after) or before[scale.axis] != after[scale.axis]:
        raise CannotFoldError(f"{where} changes the channel axis")
    return scale


def _other(context: Context, node: ir.Node, scale: AxisScale) -> bool:
    if node.op_type == "Clip":
        return _is_relu(context, node) and _not_negative(scale)
    if node.op_type in ("Resize", "Upsample"):
        return attribute_text(node, "coordinate_transformation_mode", "") != "tf_crop_and_resize"
    if node.op_type == "Pad":
        return _pads_with_zeros(context, node) and _pads_others(context, node, scale)
    return node.op_type in REDUCTIONS and _reduces_others(context, node, scale)


def _not_negative(scale: AxisScale) -> bool:
    return bool((scale.values >= 0).all())


def _is_relu(context: Context, node: ir.Node) -> bool:
    """Whether a Clip has nothing but a lower bound of 0."""
    if opset(context.model) < 11:
        low, high = node.attributes.get("min"), node.attributes.get("max")
        return low is not None and low.as_float() == 0 and high is None
    given = [*node.inputs, None, None][1:3]
    found = context.constant(given[0])
    return given[1] is None and found is not None and found.size == 1 and float(found.reshape(-1)[0]) == 0


def _pads_with_zeros(context: Context, node: ir.Node) -> bool:
    if attribute_text(node, "mode", "constant") != "constant":
        return True
    value = node.attributes.get("value")
    if value is not None:
        return value.as_float() == 0
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    found = context.constant(node.inputs[2])
    return found is not None and not found.any()


def _pads_others(context: Context, node: ir.Node, scale: AxisScale) -> bool:
    """Whether the axis of the scale is left alone."""
    if len(node.inputs) > 3:
        return False
    pads = attribute_ints(node, "pads")
    if pads is None and len(node.inputs) > 1:
        found = context.constant(node.inputs[1])
        pads = None if found is None else [int(size) for size in found]
    return pads is not None and not pads[scale.axis] and not pads[scale.axis + len(pads) // 2]


def _reduces_others(context: Context, node: ir.Node, scale: AxisScale) -> bool:
    axes = attribute_ints(node, "axes")
    if axes is None and len(node.inputs) > 1:
        found = context.constant(node.inputs[1])
        axes = None if found is None else [int(axis) for axis in found]
    if not axes or not attribute_int(node, "keepdims", 1):
        return False
    rank = len(context.shape(node.inputs[0]))
    positive = node.op_type in ("ReduceMax", "ReduceMin")
    return scale.axis not in {axis % rank for axis in axes} and (not positive or _not_negative(scale))


def static_operand(context: Context, node: ir.Node) -> tuple[int, Array] | None:
    """Which input of a sum or product of two is a constant, and its numbers."""
    for index in (1, 0):
        found = context.constant(node.inputs[index]) if len(node.inputs) == 2 else None
        if found is not None:
            return index, found
    return None


def check_full(context: Context, node: ir.Node, index: int, scale: AxisScale) -> None:
    """See that an operand already has the channels of the result, which another operand does not bring in.

    Raises:
        CannotFoldError: it has not.
    """
    given, after = context.shape(node.inputs[index]), context.shape(node.outputs[0])
    if len(given) != len(after) or given[scale.axis] != after[scale.axis]:
        raise CannotFoldError(f"{label(node)} broadcasts the channels")


def label(node: ir.Node) -> str:
    """What an operation is called in reports."""
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"


def concat_parts(context: Context, node: ir.Node, rank: int) -> tuple[int, list[int]]:
    """The axis of a Concat, and where each input begins on it."""
    axis = attribute_int(node, "axis", 1) % rank
    sizes = [context.shape(value)[axis] for value in node.inputs]
    return axis, [0, *(int(end) for end in np.cumsum(sizes))]
