"""Put constants in the place of gates, remove what computed those, and fold the constants into layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stripefold.onnx.gates import Gate
from stripefold.onnx.paths import ScalePath
from stripefold.onnx.read import OnnxNetwork
from stripefold.onnx.scale_moves import AxisScale, CannotFoldError, Context, label
from stripefold.onnx.session import Array
from stripefold.onnx.shapes import ValueShapes
from stripefold.onnx.values import ancestors, users, values_of, weights_are_inputs
from stripefold.onnx.weights import OnnxWeights, add_constant


@dataclass(frozen=True)
class Folded:
    """What became of one gate.

    Attributes:
        outcome: "folded" into layers, "multiply" by a constant, or "constant": constant where it was multiplied, but
            something else needs its value.
        place: the operations that took the constant, or the one that remains.
        why: in words.
        remaining: operations behind a value that is still computed.
    """

    outcome: Literal["folded", "multiply", "constant"]
    place: str
    why: str
    remaining: int = 0


@dataclass
class _Constant:
    """A gate's multiplication by its constant, as it moves through the graph."""

    gate: Gate
    node: ir.Node
    factor: ir.Value
    values: Array
    dtype: np.dtype[np.generic]

    @property
    def scaled(self) -> ir.Value:
        value = self.node.inputs[1 - self.gate.operand]
        assert value is not None
        return value


def fold_constants(
    network: OnnxNetwork,
    gates: Sequence[Gate],
    constants: Mapping[str, Array],
    dtypes: Mapping[str, str],
    shapes: Sequence[ValueShapes],
) -> tuple[ir.Model, dict[str, Folded], list[str]]:
    """Bake gates.

    Args:
        network: stays as it is.
        gates: those that become constant.
        constants: gate -> v (C,), float64.
        dtypes: gate -> the type in which it is computed.
        shapes: of every value in one run, and in runs on inputs of other sizes.

    Returns:
        The new graph, gate -> what became of it, and notes for the user.
    """
    model = network.model()
    named = values_of(model)
    held = []
    for gate in gates:
        node, factor = named[gate.product].producer(), _source(named[gate.factor])
        assert node is not None
        values, dtype = constants[gate.name].astype(np.float64), np.dtype(dtypes[gate.name])
        held.append(_Constant(gate, node, factor, values, dtype))
    _remove_identities(model)
    for one in held:
        _hold(model, one)
    context = Context(model, shapes[0], shapes[1:])
    for one in held:
        _merge_sum(one)
    _remove_unused(model)
    weights = OnnxWeights(model)
    folded: dict[str, Folded] = {}
    for absorb in (False, True):
        for one in held:
            if one.gate.name not in folded:
                found = _fold(context, weights, one, absorb=absorb)
                if isinstance(found, Folded):
                    folded[one.gate.name] = found
                elif absorb:
                    folded[one.gate.name] = _multiply(model, one, found)
    weights.commit()
    _remove_unused(model)
    folded = {one.gate.name: _still_computed(one, folded[one.gate.name]) for one in held}
    notes = [f"{name!r} is used elsewhere too and was copied" for name in dict.fromkeys(weights.copied)]
    return model, folded, notes


def _source(value: ir.Value) -> ir.Value:
    """The value that an Identity hands on."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _remove_identities(model: ir.Model) -> None:
    """Operations that only hand a value on stand between others; those that name an output stay."""
    for node in list(model.graph):
        if node.op_type == "Identity" and node.domain == "" and not node.outputs[0].is_graph_output():
            given = node.inputs[0]
            if given is not None:
                node.outputs[0].replace_all_uses_with(given)
                model.graph.remove(node, safe=True)


def _remove_unused(model: ir.Model) -> None:
    """Remove dead operations and weights; in old files, where every weight is an input as well, those inputs too."""
    RemoveUnusedNodesPass()(model)
    if not weights_are_inputs(model):
        return
    for value in list(model.graph.inputs):
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            model.graph.inputs.remove(value)
    RemoveUnusedNodesPass()(model)


def _hold(model: ir.Model, one: _Constant) -> None:
    """Give the multiplication the constant in the gate's place, so that what computed the gate is used no more."""
    shape = [one.gate.channels if axis == one.gate.axis else 1 for axis in range(one.gate.rank)]
    array = one.values.astype(one.dtype).reshape(shape)
    value = add_constant(model, one.node, array, f"{one.gate.product}/constant")
    one.node.replace_input_with(one.gate.operand, value)


def _merge_sum(one: _Constant) -> None:
    """X + x * v is x * (1 + v), and x - x * v is x * (1 - v)."""
    product = one.node.outputs[0]
    taken = users(product)
    if len(taken) != 1 or product.is_graph_output():
        return
    total, index = taken[0]
    if total.op_type not in ("Add", "Sub") or total.inputs[1 - index] is not one.scaled or total.domain != "":
        return
    if total.op_type == "Sub":
        one.values = 1 - one.values if index == 1 else one.values - 1
    else:
        one.values = 1 + one.values
    _bypass(total, product)


def _fold(context: Context, weights: OnnxWeights, one: _Constant, *, absorb: bool) -> Folded | str:
    """Try the ways of one constant; why none of them leads anywhere."""
    if one.node.graph is None:  # it served another gate's attention alone
        return Folded("folded", "", "nothing needs what it scales any more")
    scale = AxisScale(one.values, one.gate.axis)
    reasons = []
    for how, words in (("back", "into the layer in front"), ("forward", "into the layers behind")):
        way = ScalePath(context, absorb=absorb)
        try:
            edits = way.back(one.scaled, scale) if how == "back" else way.forward(one.node.outputs[0], scale)
        except CannotFoldError as error:
            reasons.append(f"{how}: {error}")
            continue
        if not _may_bypass(one.node, one.scaled):
            reasons.append(f"{how}: an input of the network is its output too")
            continue
        refused = weights.tried(edits)
        if refused:
            reasons.append(f"{how}: {refused}")
            continue
        _bypass(one.node, one.scaled)
        return Folded("folded", ", ".join(dict.fromkeys(way.layers)), f"{how}, {words}")
    return "; ".join(reasons)


def _multiply(model: ir.Model, one: _Constant, why: str) -> Folded:
    """The constant stays as a product of its own, with the sum that was merged into it."""
    value = one.node.inputs[one.gate.operand]
    assert value is not None
    shape = [one.gate.channels if axis == one.gate.axis else 1 for axis in range(one.gate.rank)]
    made = add_constant(model, one.node, one.values.astype(one.dtype).reshape(shape), f"{one.gate.product}/factor")
    one.node.replace_input_with(one.gate.operand, made)
    return Folded("multiply", label(one.node), why)


def _still_computed(one: _Constant, found: Folded) -> Folded:
    value, node = one.factor, one.factor.producer()
    if node is None or node.graph is None:
        return found
    users = sorted({label(node) for node in value.consumers()}) or ["an output of the network"]
    nodes = sum(1 for each in ancestors(value) if each.producer() is not None)
    why = f"its value is needed by {', '.join(users[:3])}: it and the {nodes} operations behind it stay"
    return Folded("constant", found.place, why, nodes)


def _may_bypass(node: ir.Node, keep: ir.Value) -> bool:
    if not node.outputs[0].is_graph_output():
        return True
    return keep.producer() is not None and not keep.is_graph_output()


def _bypass(node: ir.Node, keep: ir.Value) -> None:
    """Let a value stand for what a node computes; where that is an output of the network, it takes its name too."""
    gone = node.outputs[0]
    if gone.is_graph_output():
        name, kind, shape = gone.name, gone.type, gone.shape
        gone.replace_all_uses_with(keep, replace_graph_outputs=True)
        gone.name = f"{name}/before"
        keep.name, keep.type, keep.shape = name, kind, shape
    else:
        gone.replace_all_uses_with(keep)
    graph = node.graph
    if graph is not None:
        graph.remove(node, safe=True)
