"""The ways of a constant scale: back into what makes a value, or forward into all that take it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stripefold.onnx.layers import IN, OUT
from stripefold.onnx.scale_moves import (
    AxisScale,
    CannotFoldError,
    Context,
    check_full,
    concat_parts,
    label,
    static_operand,
    through,
)
from stripefold.onnx.values import users
from stripefold.onnx.weights import Edit, OnnxWeights

_LONGEST = 64  # operations on one way, all branches together


class ScalePath:
    """One attempt to move a scale; remembers the layers it reaches.

    Args:
        context: the graph.
        absorb: a product with another constant may take the scale, which then costs what it cost before; else only
            layers take it.
    """

    def __init__(self, context: Context, *, absorb: bool = False) -> None:
        self._context, self._absorb, self._steps = context, absorb, 0
        self.layers: list[str] = []

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _LONGEST:
            raise CannotFoldError("the way to a layer is too long")

    def back(self, value: ir.Value, scale: AxisScale) -> list[Edit]:
        """The edits that make a value come out scaled; nothing but the one operation that scales it may use it.

        Raises:
            CannotFoldError: why not.
        """
        self._step()
        node = value.producer()
        if node is None:
            raise CannotFoldError("the map is an input of the network")
        if len(users(value)) != 1 or value.is_graph_output():
            raise CannotFoldError(f"what {label(node)} gives is used elsewhere too")
        if node.op_type in OUT and node.domain == "":
            edits = OUT[node.op_type](self._context, node, scale)
            self.layers.append(label(node))
            return edits
        if node.op_type in ("Add", "Sub") and node.domain == "":
            return self._back_sum(node, scale)
        if node.op_type in ("Mul", "Div") and node.domain == "":
            return self._back_product(node, scale)
        if node.op_type == "Concat":
            return self._back_concat(node, scale)
        source = node.inputs[0]
        if source is None:
            raise CannotFoldError(f"{label(node)} has no input")
        return self.back(source, through(self._context, node, scale, back=True))

    def _back_sum(self, node: ir.Node, scale: AxisScale) -> list[Edit]:
        static = static_operand(self._context, node)
        edits: list[Edit] = []
        for index, value in enumerate(node.inputs):
            if static is not None and index == static[0]:
                edits.append(_rescaled(node, index, scale, len(self._context.shape(node.outputs[0]))))
            elif value is not None:
                check_full(self._context, node, index, scale)
                edits += self.back(value, scale)
        return edits

    def _back_product(self, node: ir.Node, scale: AxisScale) -> list[Edit]:
        static = static_operand(self._context, node)
        if static is None or (node.op_type == "Div" and static[0] == 0):
            raise CannotFoldError(f"{label(node)} of two values that depend on the data does not lead to a layer")
        source = node.inputs[1 - static[0]]
        assert source is not None
        if self._absorb:
            rank = len(self._context.shape(node.outputs[0]))
            divides = node.op_type == "Div"
            if divides and not (np.abs(scale.values) > 0).all():
                raise CannotFoldError(f"{label(node)} cannot divide by a constant of 0")
            taken = AxisScale(1 / scale.values, scale.axis) if divides else scale
            self.layers.append(label(node))
            return [_rescaled(node, static[0], taken, rank)]
        check_full(self._context, node, 1 - static[0], scale)
        return self.back(source, scale)

    def _back_concat(self, node: ir.Node, scale: AxisScale) -> list[Edit]:
        axis, ends = concat_parts(self._context, node, len(self._context.shape(node.outputs[0])))
        edits: list[Edit] = []
        for index, value in enumerate(node.inputs):
            part = scale.values[ends[index] : ends[index + 1]] if axis == scale.axis else scale.values
            if value is not None:
                edits += self.back(value, AxisScale(part, scale.axis))
        return edits

    def forward(self, value: ir.Value, scale: AxisScale) -> list[Edit]:
        """The edits that let all that take a value scale it themselves.

        Raises:
            CannotFoldError: why not.
        """
        self._step()
        if value.is_graph_output():
            raise CannotFoldError("the scaled map is an output of the network")
        edits: list[Edit] = []
        for user, index in users(value):
            edits += self._forward_into(user, index, scale)
        if not edits:
            raise CannotFoldError("nothing takes the scaled map")
        return edits

    def _forward_into(self, node: ir.Node, index: int, scale: AxisScale) -> list[Edit]:
        if node.op_type in IN and node.domain == "":
            if index != 0 and node.op_type != "MatMul":
                raise CannotFoldError(f"{label(node)} takes the map as its weights")
            edits = IN[node.op_type](self._context, node, scale)
            self.layers.append(label(node))
            return edits
        if node.op_type in ("Mul", "Div") and node.domain == "" and (node.op_type == "Mul" or index == 0):
            check_full(self._context, node, index, scale)
            return self.forward(node.outputs[0], scale)
        if node.op_type == "Concat":
            return self.forward(node.outputs[0], self._concatenated(node, index, scale))
        if index != 0:
            raise CannotFoldError(f"{label(node)} takes the map beside its first input")
        return self.forward(node.outputs[0], through(self._context, node, scale, back=False))

    def _concatenated(self, node: ir.Node, index: int, scale: AxisScale) -> AxisScale:
        axis, ends = concat_parts(self._context, node, len(self._context.shape(node.outputs[0])))
        if axis != scale.axis:
            raise CannotFoldError(f"{label(node)} puts scaled and other values side by side")
        values = np.ones(ends[-1])
        values[ends[index] : ends[index + 1]] = scale.values
        return AxisScale(values, axis)


def _rescaled(node: ir.Node, index: int, scale: AxisScale, rank: int) -> Edit:
    def edit(weights: OnnxWeights) -> None:
        values = weights.get(node, index)
        assert values is not None
        weights.set(node, index, scale.times(values, rank))

    return edit
