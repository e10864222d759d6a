"""Weights that several constants go into: kept in float64, rounded once, copied where others use them too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from stripefold.onnx.session import Array
from stripefold.onnx.values import constant, values_of, weights_are_inputs

Edit = Callable[["Weights"], None]
"""One change of the weights of one operation."""


class Weights:
    """The constant inputs of a graph's operations, as they will be.

    Args:
        model: changed by ``commit`` alone.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._pending: dict[tuple[int, int], tuple[ir.Node, Array]] = {}
        self.copied: list[str] = []

    def get(self, node: ir.Node, index: int) -> Array | None:
        """A constant input in float64, or None: it is not there, or no constant."""
        if index >= len(node.inputs) or node.inputs[index] is None:
            return None
        if (id(node), index) in self._pending:
            return self._pending[id(node), index][1]
        found = constant(self._model, node.inputs[index])
        return None if found is None else found.astype(np.float64)

    def set(self, node: ir.Node, index: int, values: Array) -> None:
        """Change it."""
        self._pending[id(node), index] = node, values

    def tried(self, edits: Sequence[Edit]) -> str:
        """Apply edits, all or none.

        Returns:
            Why they cannot be applied, or "".
        """
        before = dict(self._pending)
        for edit in edits:
            edit(self)
        for key, (node, values) in self._pending.items():
            if key in before and before[key][1] is values:
                continue
            with np.errstate(over="ignore"):
                rounded = values.astype(_dtype(self._model, node, key[1]))
            if not np.isfinite(rounded.astype(np.float64)).all():
                self._pending = before
                return f"{rounded.dtype} cannot hold the weights of {node.name or node.op_type!r} times the constant"
        return ""

    def commit(self) -> None:
        """Write all changes into the graph."""
        for (_, index), (node, values) in self._pending.items():
            value = node.inputs[index]
            assert value is not None
            array = values.astype(_dtype(self._model, node, index))
            own = value.is_initializer() and not value.is_graph_output() and len(value.uses()) == 1
            if own and (not value.is_graph_input() or weights_are_inputs(self._model)):
                value.const_value = ir.tensor(array, name=value.name)
                value.shape = ir.Shape(array.shape)
                continue
            if len(value.uses()) > 1:
                self.copied.append(value.name or "")
            made = add_constant(self._model, node, array, f"{value.name}/baked")
            node.replace_input_with(index, made)
        self._pending.clear()


def add_constant(model: ir.Model, before: ir.Node, array: Array, name: str) -> ir.Value:
    """A new constant under a name that is not taken.

    Args:
        model: gets it.
        before: the operation that is going to use it.
        array: its numbers.
        name: "#2" is put behind it where it is taken.
    """
    taken, wanted, number = values_of(model), name, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    tensor = ir.tensor(array, name=name)
    if not weights_are_inputs(model):
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        model.graph.register_initializer(value)
        return value
    node = ir.node("Constant", [], {"value": tensor})
    node.outputs[0].name = name
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _dtype(model: ir.Model, node: ir.Node, index: int) -> np.dtype[np.generic]:
    found = constant(model, node.inputs[index])
    assert found is not None
    kind: np.dtype[np.generic] = found.dtype
    return kind
