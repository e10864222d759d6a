"""What is known about the values of a graph: which depend on the data, and which are constants."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor

from stripefold.onnx.session import Array

_SHAPE_ONLY = frozenset({"Shape", "Size"})
# IR version from which a weight that is also an input may be given anew by the caller; before, all weights were inputs.
_FREE_INITIALIZERS = 4


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """Name -> value: inputs, weights and whatever a node computes."""
    named = {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    named |= {value.name: value for node in model.graph for value in node.outputs if value.name}
    return {name: value for name, value in named.items() if name is not None}


def data_inputs(model: ir.Model) -> list[ir.Value]:
    """Inputs that the caller must give."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def data_dependent(model: ir.Model) -> set[str]:
    """Names of the values that depend on the numbers in the input, and not only on its shape."""
    found = {value.name for value in model.graph.inputs if _may_be_given(model, value)}
    for node in model.graph:
        if node.op_type not in _SHAPE_ONLY and any(value is not None and value.name in found for value in node.inputs):
            found |= {value.name for value in node.outputs}
    return {name for name in found if name}


def weights_are_inputs(model: ir.Model) -> bool:
    """Whether the file is of the time when every weight had to be an input as well."""
    return (model.ir_version or 0) < _FREE_INITIALIZERS


def _may_be_given(model: ir.Model, value: ir.Value) -> bool:
    return value.const_value is None or not weights_are_inputs(model)


def constant(model: ir.Model, value: ir.Value | None) -> Array | None:
    """The numbers of a constant, or None: a weight or a Constant, also through Identity."""
    if value is None:
        return None
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    if value.is_graph_input() and _may_be_given(model, value):
        return None
    tensor = get_const_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return np.asarray(tensor.numpy())


def attribute_ints(node: ir.Node, name: str) -> list[int] | None:
    """A list of whole numbers among a node's attributes, or None."""
    found = node.attributes.get(name)
    return None if found is None else [int(each) for each in found.as_ints()]


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """A whole number among a node's attributes."""
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def attribute_text(node: ir.Node, name: str, default: str) -> str:
    """A word among a node's attributes."""
    found = node.attributes.get(name)
    return default if found is None else found.as_string()


def users(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The operations that take the numbers of a value, and as which input; those that ask for its shape do not."""
    return [(use.node, use.idx) for use in value.uses() if use.node.op_type not in _SHAPE_ONLY]


def ancestors(value: ir.Value) -> Iterator[ir.Value]:
    """A value and everything it is computed from."""
    seen, todo = {id(value)}, [value]
    while todo:
        current = todo.pop()
        yield current
        node = current.producer()
        for each in node.inputs if node is not None else ():
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                todo.append(each)


def opset(model: ir.Model) -> int:
    """Version of the standard operators."""
    return model.opset_imports.get("", 1)
