"""The channel axis of a value: told by the layer that made it, or by the layer that takes it."""

from __future__ import annotations

import onnx_ir as ir

from stripefold.onnx.shapes import ValueShapes, view_axis
from stripefold.onnx.values import attribute_ints

_SECOND = frozenset(
    {
        "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool",
        "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "LRN", "DepthToSpace", "SpaceToDepth",
    }
)  # fmt: skip
_LAST = frozenset({"MatMul", "Gemm", "LayerNormalization"})
_CARRIED = frozenset(
    {
        "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mish", "Elu", "Selu", "Softplus",
        "Tanh", "Erf", "Gelu", "Swish", "QuickGelu", "Identity", "Dropout", "Cast", "Add", "Sub", "Mul", "Div", "Pow",
        "Sqrt", "Abs", "Exp", "Resize", "Upsample", "Pad", "Slice", "Concat", "Where", "Min", "Max", "Celu", "Softmax",
    }
)  # fmt: skip
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_LOOKAHEAD = 12


def axis_behind(value: ir.Value, shapes: ValueShapes) -> int | None:
    """The channel axis of a value, carried along from the layers behind it."""
    shape = shapes.get(value.name or "")
    while shape is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type in _SECOND:
            return 1
        if node.op_type in _LAST:
            return len(shapes[value.name or ""]) - 1
        if node.op_type in _VIEWS and node.inputs[0] is not None:
            axis = axis_behind(node.inputs[0], shapes)
            return None if axis is None else view_axis(shapes[node.inputs[0].name or ""], shape, axis)
        following = _source(node, shapes)
        if following is None:
            return None
        if node.op_type == "Transpose":
            axis = axis_behind(following, shapes)
            order = attribute_ints(node, "perm") or list(range(len(shapes[following.name or ""])))[::-1]
            return None if axis is None else order.index(axis)
        if node.op_type not in _CARRIED:
            return None
        value = following
        shape = shapes.get(value.name or "")
    return None


def _source(node: ir.Node, shapes: ValueShapes) -> ir.Value | None:
    """The input of a node that has the rank and the size of its output, if there is one."""
    shape = shapes.get(node.outputs[0].name or "", ())
    for value in node.inputs:
        if value is not None and len(shapes.get(value.name or "", ())) == len(shape) and value.producer() is not None:
            return value
    return None


def axis_ahead(value: ir.Value, shapes: ValueShapes) -> int | None:
    """The channel axis that the next layer takes a value to have, or None."""
    order: list[int] = list(range(len(shapes.get(value.name or "", ()))))
    for _ in range(_LOOKAHEAD):
        users = value.consumers()
        if not users or not order:
            return None
        node = users[0]
        if node.op_type in _SECOND:
            return order[1] if len(order) > 1 else None
        if node.op_type in _LAST:
            return order[-1] if node.inputs[0] is value else None
        if node.op_type == "Transpose":
            permutation = attribute_ints(node, "perm") or list(range(len(order)))[::-1]
            order = [order[index] for index in permutation]
        elif node.op_type not in _CARRIED or len(shapes.get(node.outputs[0].name or "", ())) != len(order):
            return None
        value = node.outputs[0]
    return None
