"""Which axis of a value holds the channels: told by the layer that made it, or by the layer that takes it."""

from __future__ import annotations

import onnx_ir as ir

from stripefold.onnx.shapes import ValueShapes, moved_axis, moves_axes

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
_LOOKAHEAD = 12


def axis_upstream(value: ir.Value, shapes: ValueShapes) -> int | None:
    """The channel axis of a value, carried along from the layers upstream."""
    shape = shapes.get(value.name or "")
    while shape is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type in _SECOND:
            return 1
        if node.op_type in _LAST:
            return len(shapes[value.name or ""]) - 1
        if moves_axes(node) and node.inputs[0] is not None:
            axis = axis_upstream(node.inputs[0], shapes)
            return None if axis is None else moved_axis(node, axis, [shapes], back=False)
        following = _source(node, shapes)
        if following is None or node.op_type not in _CARRIED:
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


def axis_downstream(value: ir.Value, shapes: ValueShapes, steps: int = _LOOKAHEAD) -> int | None:
    """The channel axis that the next layer takes a value to have, or None.

    Args:
        value: of the graph.
        shapes: of one run.
        steps: how many operations may lie before the layer.
    """
    shape = shapes.get(value.name or "", ())
    users = value.consumers()
    if not users or not shape or not steps:
        return None
    node = users[0]
    if node.op_type in _SECOND:
        return 1 if len(shape) > 1 else None
    if node.op_type in _LAST:
        return len(shape) - 1 if node.inputs[0] is value else None
    if moves_axes(node):
        axis = axis_downstream(node.outputs[0], shapes, steps - 1)
        return None if axis is None else moved_axis(node, axis, [shapes], back=True)
    if node.op_type not in _CARRIED or len(shapes.get(node.outputs[0].name or "", ())) != len(shape):
        return None
    return axis_downstream(node.outputs[0], shapes, steps - 1)
