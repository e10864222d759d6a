"""A network with a switch at each gate: dynamic, or any constant, within one session; and one that shows its gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from stripefold.errors import ObserveError
from stripefold.onnx.gates import Gate
from stripefold.onnx.read import OnnxNetwork
from stripefold.onnx.session import Array, Feed, Session
from stripefold.onnx.values import opset, values_of

GateConstants = Mapping[str, Array]
"""Gate -> v (C,)."""

_AXES_AS_INPUT = 18  # ReduceSumSquare


class Switched:
    """A network whose gates can be held at constants; with all gates dynamic it computes the same numbers as before.

    A factor v is multiplied by a number that is 1 or 0, and a constant is added that is 0 or c: exact in each state,
    and there in every version of the operators.

    Args:
        network: with the gates.
        gates: those that get a switch.
        dtypes: gate -> NumPy's name of the type in which it is computed (``Seen.dtype``).
        threads: of onnxruntime.
        optimised: False runs operation by operation.
    """

    def __init__(
        self,
        network: OnnxNetwork,
        gates: Sequence[Gate],
        dtypes: Mapping[str, str],
        *,
        threads: int = 0,
        optimised: bool = True,
    ) -> None:
        self._gates = list(gates)
        self._dtypes = [np.dtype(dtypes[gate.name]) for gate in gates]
        model = network.model()
        for index, (gate, dtype) in enumerate(zip(gates, self._dtypes, strict=True)):
            _add_switch(model, index, gate, ir.DataType.from_numpy(dtype))
        self._session = Session(model, network.name, threads=threads, optimised=optimised)
        self.outputs = self._session.outputs

    def run(self, feed: Feed, constants: GateConstants | None = None) -> list[Array]:
        """All outputs, with these gates constant and the others dynamic.

        Raises:
            OnnxError: an operation fails.
        """
        constants = constants or {}
        switches: dict[str, Array] = {}
        for index, (gate, dtype) in enumerate(zip(self._gates, self._dtypes, strict=True)):
            held = constants.get(gate.name)
            shape = _constant_shape(gate)
            value = np.zeros(gate.channels) if held is None else held
            switches[_name("keep", index)] = np.asarray(held is None, dtype)
            switches[_name("value", index)] = value.reshape(shape).astype(dtype)
        return self._session.run({**feed, **switches})

    def nudged(self, constants: GateConstants) -> GateConstants:
        """The constants with every second one moved by one step of their type, as rounding moves folded weights."""
        found = {}
        for gate, dtype in zip(self._gates, self._dtypes, strict=True):
            if gate.name in constants:
                found[gate.name] = constants[gate.name] * (
                    1 + float(np.finfo(dtype).eps) * (np.arange(gate.channels) % 2)
                )
        return found


@dataclass(frozen=True)
class Seen:
    """What one batch shows of one gate.

    Attributes:
        values: v, (rows, C) float64.
        energy: sum over positions of the square of what is scaled, (rows, C) float64.
        dtype: in which the network computed v.
    """

    values: Array
    energy: Array
    dtype: str


class Watched:
    """A network that also gives the values of its gates, and the energy of what they scale."""

    def __init__(self, network: OnnxNetwork, gates: Sequence[Gate], *, threads: int = 0) -> None:
        self._gates = list(gates)
        model = network.model()
        values = values_of(model)
        self._wanted: list[str] = []
        for index, gate in enumerate(gates):
            self._wanted += [
                _shown(model, values[gate.factor], _name("factor", index)),
                _energy(model, values[gate.scaled], gate, index),
            ]
        self._session = Session(model, network.name, threads=threads)

    def run(self, feed: Feed) -> Iterator[tuple[Gate, Seen]]:
        """What one batch shows of each gate.

        Raises:
            OnnxError: an operation fails.
            ObserveError: a gate that changes its shape, or values that are not finite.
        """
        found = self._session.run(feed, self._wanted)
        for index, gate in enumerate(self._gates):
            factor, energy = found[2 * index], found[2 * index + 1]
            rows = _rows(energy, gate)
            values = np.broadcast_to(_rows(factor, gate), rows.shape).astype(np.float64)
            if not (np.isfinite(values).all() and np.isfinite(rows).all()):
                raise ObserveError(
                    f"the gate {gate.name!r}, or the map it scales, has values that are not finite: look at the input"
                )
            yield gate, Seen(values, rows.astype(np.float64), str(factor.dtype))


def _rows(array: Array, gate: Gate) -> Array:
    """One row per sample of what has one number per sample and channel."""
    full = array.reshape((1,) * (gate.rank - array.ndim) + array.shape) if array.ndim < gate.rank else array
    rest = [size for axis, size in enumerate(full.shape) if axis not in (0, gate.axis)]
    if full.ndim != gate.rank or full.shape[gate.axis] != gate.channels or any(size != 1 for size in rest):
        raise ObserveError(
            f"the gate {gate.name!r} has {gate.channels} channels on axis {gate.axis} in the first batch and the shape "
            f"{array.shape} in another: no constant fits both. Give images of one kind"
        )
    return np.moveaxis(full, gate.axis, -1).reshape(full.shape[0], gate.channels)


def _add_switch(model: ir.Model, index: int, gate: Gate, dtype: ir.DataType) -> None:
    product = values_of(model)[gate.product].producer()
    assert product is not None
    keep = ir.Value(name=_name("keep", index), shape=ir.Shape([]), type=ir.TensorType(dtype))
    value = ir.Value(name=_name("value", index), shape=ir.Shape(_constant_shape(gate)), type=ir.TensorType(dtype))
    model.graph.inputs.extend([keep, value])
    kept = ir.node("Mul", [product.inputs[gate.operand], keep])
    kept.outputs[0].name = _name("kept", index)
    held = ir.node("Add", [kept.outputs[0], value])
    held.outputs[0].name = _name("held", index)
    model.graph.insert_before(product, [kept, held])
    product.replace_input_with(gate.operand, held.outputs[0])


def _constant_shape(gate: Gate) -> tuple[int, ...]:
    return tuple(gate.channels if axis == gate.axis else 1 for axis in range(gate.rank))


def _shown(model: ir.Model, value: ir.Value, name: str) -> str:
    node = ir.node("Identity", [value])
    node.outputs[0].name = name
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    return name


def _energy(model: ir.Model, scaled: ir.Value, gate: Gate, index: int) -> str:
    """Sum of squares over all axes but the first and the channels', in float32."""
    cast = ir.node("Cast", [scaled], {"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].name = _name("map", index)
    axes = [axis for axis in range(gate.rank) if axis not in (0, gate.axis)]
    model.graph.append(cast)
    if opset(model) < _AXES_AS_INPUT:
        node = ir.node("ReduceSumSquare", [cast.outputs[0]], {"axes": axes, "keepdims": 1})
    else:
        given = ir.node("Constant", [], {"value": ir.tensor(np.asarray(axes, np.int64))})
        given.outputs[0].name = _name("axes", index)
        model.graph.append(given)
        node = ir.node("ReduceSumSquare", [cast.outputs[0], given.outputs[0]], {"keepdims": 1})
    node.outputs[0].name = _name("energy", index)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    return _name("energy", index)


def _name(what: str, index: int) -> str:
    return f"stripefold/{what}/{index}"
