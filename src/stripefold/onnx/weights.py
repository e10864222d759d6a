"""Weights that several constants go into: kept in float64, rounded once, copied where others use them too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from stripefold.onnx.session import Array
from stripefold.onnx.values import constant, values_of, weights_are_inputs

Edit = Callable[["OnnxWeights"], None]
"""One change of the weights of one operation."""


class OnnxWeights:
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
            with np.errstate(over="ignore", under="ignore"):
                rounded = values.astype(_dtype(self._model, node, key[1]))
            where = f"the weights of {node.name or node.op_type!r} times the constant"
            if not np.isfinite(rounded.astype(np.float64)).all():
                self._pending = before
                return f"{rounded.dtype} cannot hold {where}"
            if _underflows(values, rounded):
                self._pending = before
                return f"{rounded.dtype} cannot hold {where}: they are too small"
        return ""

    def commit(self) -> None:
        """Write all changes into the graph; users of one weight that change it alike go on to share it."""
        changes: dict[str, list[tuple[ir.Node, int, Array]]] = {}
        for (_, index), (node, values) in self._pending.items():
            value = node.inputs[index]
            assert value is not None
            array, before = values.astype(_dtype(self._model, node, index)), constant(self._model, value)
            if before is None or before.shape != array.shape or before.tobytes() != array.tobytes():
                changes.setdefault(value.name or "", []).append((node, index, array))
        for users in changes.values():
            self._write(users)
        self._pending.clear()

    def _write(self, users: Sequence[tuple[ir.Node, int, Array]]) -> None:
        """The new numbers of one weight, in its place where all its users want the same, else beside it."""
        node, index, array = users[0]
        value = node.inputs[index]
        assert value is not None
        alike = all(other.shape == array.shape and other.tobytes() == array.tobytes() for _, _, other in users)
        own = value.is_initializer() and not value.is_graph_output() and len(value.uses()) == len(users)
        if own and alike and (not value.is_graph_input() or weights_are_inputs(self._model)):
            value.const_value = ir.tensor(array, name=value.name)
            value.shape = ir.Shape(array.shape)
            return
        if len(value.uses()) > 1:
            self.copied.append(value.name or "")
        made: dict[tuple[tuple[int, ...], bytes], ir.Value] = {}
        for node, index, array in users:
            key = array.shape, array.tobytes()
            if key not in made or weights_are_inputs(self._model):  # there it is a Constant in front of one user
                made[key] = add_constant(self._model, node, array, f"{value.name}/baked")
            node.replace_input_with(index, made[key])


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


def _underflows(values: Array, rounded: Array) -> bool:
    """Whether rounding a kernel loses more than digits (``algebra.rounding`` for arrays); a small bias is no loss."""
    if values.ndim < 2 or rounded.dtype.kind != "f":
        return False
    lost = np.linalg.norm(rounded.astype(np.float64) - values)
    return bool(lost > np.finfo(rounded.dtype).eps * np.linalg.norm(values))


def _dtype(model: ir.Model, node: ir.Node, index: int) -> np.dtype[np.generic]:
    found = constant(model, node.inputs[index])
    assert found is not None
    kind: np.dtype[np.generic] = found.dtype
    return kind
