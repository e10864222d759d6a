"""The shape of every value, as one run shows it: files say little about shapes, and that often wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from stripefold.errors import OnnxError
from stripefold.onnx.data import Input
from stripefold.onnx.operator_names import RESHAPES
from stripefold.onnx.read import OnnxNetwork
from stripefold.onnx.session import Array, Feed, Session
from stripefold.onnx.values import attribute_ints

ValueShapes = dict[str, tuple[int, ...]]

_NO_TENSORS = frozenset(
    {"SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty", "SplitToSequence", "Optional", "ZipMap"}
)


def run_shapes(network: OnnxNetwork, feed: Feed) -> ValueShapes:
    """Name -> shape of every value for one input; only shapes are kept, so it takes no more memory than a run.

    Raises:
        OnnxError: the network does not run on the input.
    """
    model = network.model()
    wanted = {}
    for node in list(model.graph):
        if node.op_type in _NO_TENSORS or node.op_type == "Constant":
            continue
        for value in node.outputs:
            if value.name:
                shape = ir.node("Shape", [value])
                shape.outputs[0].name = f"{value.name}/shape of"
                shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                wanted[shape.outputs[0].name] = value.name
                model.graph.append(shape)
                model.graph.outputs.append(shape.outputs[0])
    session = Session(model, network.name, optimised=False)
    found = session.run(feed, list(wanted))
    shapes = {name: tuple(int(size) for size in shape) for name, shape in zip(wanted.values(), found, strict=True)}
    shapes |= {name: tuple(array.shape) for name, array in feed.items()}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            shapes[name] = tuple(int(size) for size in value.const_value.shape.numpy())
    return shapes


def other_shapes(network: OnnxNetwork, feed: Feed, inputs: Sequence[Input]) -> list[ValueShapes]:
    """The same for inputs of other sizes: each open axis twice as long, as far as the network runs on that.

    One run shows two sizes that are equal by chance, or a batch of one; what holds in all runs holds by construction.
    """
    runs = []
    ranks = {each.name: feed[each.name].ndim for each in inputs}
    for axis in range(max(ranks.values(), default=0)):
        larger = {
            each.name: _doubled(feed[each.name], axis) if each.is_open(axis) else feed[each.name] for each in inputs
        }
        if all(larger[name].shape == feed[name].shape for name in larger):
            continue
        try:
            runs.append(run_shapes(network, {**feed, **larger}))
        except OnnxError:
            continue  # it says that the axis is open, and takes this size all the same
    return runs


def moves_axes(node: ir.Node) -> bool:
    """Whether an operation gives its operand's axes other places or sizes, and nothing else."""
    return node.domain == "" and (node.op_type == "Transpose" or node.op_type in RESHAPES)


def moved_axis(node: ir.Node, axis: int, runs: Sequence[ValueShapes], *, back: bool) -> int | None:
    """Where an axis is on the other side of an operation that ``moves_axes``.

    Args:
        node: its first input and its first output are the two sides.
        axis: on the one side.
        runs: shapes of one run or more; those that do not know both sides do not count.
        back: it is on the output's side.

    Returns:
        The axis; None where it is not there as it was, whatever the input's size.
    """
    ends = ["" if value is None else value.name or "" for value in (node.inputs[0], node.outputs[0])]
    seen = [(shapes[ends[0]], shapes[ends[1]]) for shapes in runs if all(end in shapes for end in ends)]
    found: set[int | None] = set()
    for before, after in seen:
        if node.op_type == "Transpose":
            order = attribute_ints(node, "perm") or list(range(len(before)))[::-1]
            found.add(order[axis] if back else order.index(axis))
        else:
            found.add(view_axis(after, before, axis) if back else view_axis(before, after, axis))
    return found.pop() if len(found) == 1 else None


def view_axis(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """Where an axis of more than one element is after a reshape, if it is there as it was."""
    if before[axis] == 1:
        return None
    lead = math.prod(before[:axis])
    found = [each for each, size in enumerate(after) if size == before[axis] and math.prod(after[:each]) == lead]
    return found[0] if found else None


def _doubled(array: Array, axis: int) -> Array:
    return np.concatenate([array, array], axis) if axis < array.ndim else array
