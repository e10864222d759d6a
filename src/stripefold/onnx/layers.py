"""How the layers of ONNX take a scale per channel into their weights, at their output or at their input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from stripefold.onnx.scale_moves import AxisScale, CannotFoldError, Context, label
from stripefold.onnx.session import Array
from stripefold.onnx.values import attribute_int
from stripefold.onnx.weights import Edit, OnnxWeights

OnnxRule = Callable[[Context, ir.Node, AxisScale], list[Edit]]
_EPSILON = 1e-5  # BatchNormalization's own


def _edit(context: Context, node: ir.Node, index: int, change: Callable[[Array], Array]) -> Edit:
    """A change of one constant input.

    Raises:
        CannotFoldError: it is no constant.
    """
    if context.constant(node.inputs[index]) is None:
        raise CannotFoldError(f"{label(node)} takes weights that are computed or given by the caller")

    def edit(weights: OnnxWeights) -> None:
        values = weights.get(node, index)
        assert values is not None
        weights.set(node, index, change(values))

    return edit


def _has(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _bias(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """The third input, where there is one."""
    return [_edit(context, node, 2, lambda bias: bias * scale.values)] if _has(node, 2) else []


def _need_axis(node: ir.Node, scale: AxisScale, axis: int) -> None:
    if scale.axis != axis:
        raise CannotFoldError(f"the channels of {label(node)} lie on another axis")


def _columns(values: Array, scale: Array, axis: int) -> Array:
    return values * scale.reshape([-1 if each == axis % values.ndim else 1 for each in range(values.ndim)])


def _grouped(node: ir.Node, scale: AxisScale) -> Callable[[Array], Array]:
    """Scale the second axis of a weight, which lies group by group."""
    groups = attribute_int(node, "group", 1)

    def change(weight: Array) -> Array:
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        factors = scale.values.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        scaled: Array = (parts * factors).reshape(weight.shape)
        return scaled

    return change


def conv_out(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """Conv: weight (out, in / groups, ...) and bias (out,)."""
    _need_axis(node, scale, 1)
    edits = [_edit(context, node, 1, lambda weight: _columns(weight, scale.values, 0))]
    return edits + _bias(context, node, scale)


def conv_in(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """Conv: group by group, over the input channels."""
    _need_axis(node, scale, 1)
    return [_edit(context, node, 1, _grouped(node, scale))]


def conv_transpose_out(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """ConvTranspose: weight (in, out / groups, ...) and bias (out,)."""
    _need_axis(node, scale, 1)
    edits = [_edit(context, node, 1, _grouped(node, scale))]
    return edits + _bias(context, node, scale)


def conv_transpose_in(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """ConvTranspose: the first axis of the weight."""
    _need_axis(node, scale, 1)
    return [_edit(context, node, 1, lambda weight: _columns(weight, scale.values, 0))]


def gemm_out(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """Gemm: the columns of B, and C, which may be broadcast."""
    _need_axis(node, scale, 1)
    axis = 0 if attribute_int(node, "transB", 0) else 1
    edits = [_edit(context, node, 1, lambda weight: _columns(weight, scale.values, axis))]
    return edits + _bias(context, node, scale)


def gemm_in(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """Gemm: the rows of B."""
    _need_axis(node, scale, 1)
    if attribute_int(node, "transA", 0):
        raise CannotFoldError(f"{label(node)} takes its input transposed")
    axis = 1 if attribute_int(node, "transB", 0) else 0
    return [_edit(context, node, 1, lambda weight: _columns(weight, scale.values, axis))]


def matmul_out(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """MatMul: the columns of a constant second factor, or the rows of a constant first one."""
    rank = len(context.shape(node.outputs[0]))
    right, left = context.constant(node.inputs[1]), context.constant(node.inputs[0])
    if right is not None and right.ndim >= 2 and scale.axis == rank - 1:
        return [_edit(context, node, 1, lambda weight: _columns(weight, scale.values, -1))]
    if left is not None and left.ndim == 2 and scale.axis == rank - 2:
        return [_edit(context, node, 0, lambda weight: _columns(weight, scale.values, 0))]
    raise CannotFoldError(f"{label(node)} has no constant factor along the channels")


def matmul_in(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """MatMul: the rows of a constant second factor, or the columns of a constant first one."""
    right, left = context.constant(node.inputs[1]), context.constant(node.inputs[0])
    if right is not None and right.ndim >= 1 and scale.axis == len(context.shape(node.inputs[0])) - 1:
        axis = -2 if right.ndim >= 2 else 0
        return [_edit(context, node, 1, lambda weight: _columns(weight, scale.values, axis))]
    if left is not None and left.ndim == 2 and scale.axis == len(context.shape(node.inputs[1])) - 2:
        return [_edit(context, node, 0, lambda weight: _columns(weight, scale.values, 1))]
    raise CannotFoldError(f"{label(node)} has no constant factor along the channels")


def norm_out(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """Normalisations: their own scale and bias."""
    rank = len(context.shape(node.outputs[0]))
    _need_axis(node, scale, rank - 1 if node.op_type == "LayerNormalization" else 1)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise CannotFoldError(f"{label(node)} has statistics that are used")
    if attribute_int(node, "training_mode", 0) or attribute_int(node, "axis", -1) % rank not in (rank - 1,):
        raise CannotFoldError(f"{label(node)} normalises in a way that is not folded")
    edits = []
    for index in (1, 2):
        if _shape(context, node, index) not in (None, scale.values.shape):
            raise CannotFoldError(f"{label(node)} has no scale for each channel")
        edits += [_edit(context, node, index, lambda values: values * scale.values)] if _has(node, index) else []
    return edits


def batch_norm_in(context: Context, node: ir.Node, scale: AxisScale) -> list[Edit]:
    """BatchNormalization on a scaled input: its mean goes into its bias, so that no number divides by the scale."""
    _need_axis(node, scale, 1)
    if attribute_int(node, "training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        raise CannotFoldError(f"{label(node)} is in training mode")
    epsilon = node.attributes.get("epsilon")
    least = _EPSILON if epsilon is None else epsilon.as_float()
    if any(_shape(context, node, index) != scale.values.shape for index in (1, 2, 3, 4)):
        raise CannotFoldError(f"{label(node)} has no numbers for each channel alone")
    checked = [_edit(context, node, index, lambda values: values) for index in (1, 2, 3, 4)]

    def edit(weights: OnnxWeights) -> None:
        gain, bias, mean, variance = (weights.get(node, index) for index in (1, 2, 3, 4))
        assert gain is not None and bias is not None and mean is not None and variance is not None  # noqa: PT018
        weights.set(node, 2, bias - gain * mean / np.sqrt(variance + least))
        weights.set(node, 3, np.zeros_like(mean))
        weights.set(node, 1, gain * scale.values)

    return [*checked, edit]


def _shape(context: Context, node: ir.Node, index: int) -> tuple[int, ...] | None:
    found = context.constant(node.inputs[index]) if _has(node, index) else None
    return None if found is None else found.shape


OUT: dict[str, OnnxRule] = {
    "Conv": conv_out,
    "ConvTranspose": conv_transpose_out,
    "Gemm": gemm_out,
    "MatMul": matmul_out,
    "BatchNormalization": norm_out,
    "InstanceNormalization": norm_out,
    "LayerNormalization": norm_out,
    "GroupNormalization": norm_out,
}
"""Operation -> how it takes a scale at its output."""
IN: dict[str, OnnxRule] = {
    "Conv": conv_in,
    "ConvTranspose": conv_transpose_in,
    "Gemm": gemm_in,
    "MatMul": matmul_in,
    "BatchNormalization": batch_norm_in,
}
"""Operation -> how it takes a scale at its input."""
