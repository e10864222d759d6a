"""Small ONNX networks with gates, written by hand in the ways in which files come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

C = 6


class Graph:
    """Adds operations one by one; weights are drawn from a fixed seed."""

    def __init__(self, *, opset: int = 17, dtype: Any = np.float32, constants: bool = False) -> None:
        self.opset, self.dtype, self.constants = opset, np.dtype(dtype), constants
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self._count += 1
        output = f"{kind.lower()}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{kind}.{self._count}", **attributes))
        return output

    def const(self, values: Any) -> str:
        self._count += 1
        name = f"w_{self._count}"
        tensor = numpy_helper.from_array(np.asarray(values), name)
        if self.constants:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights.append(tensor)
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        values = self._rng.standard_normal(shape) * 0.5
        return self.const((np.abs(values) + 0.3 if positive else values).astype(self.dtype))

    def axes(self, *axes: int) -> str:
        return self.const(np.asarray(axes, np.int64))

    def mean(self, x: str, *axes: int) -> str:
        """ReduceMean, whose axes are an input from opset 18 on."""
        if self.opset >= 18:
            return self.op("ReduceMean", x, self.axes(*axes), keepdims=1)
        return self.op("ReduceMean", x, axes=list(axes), keepdims=1)

    def conv(self, x: str, out: int = C, inner: int = C, size: int = 1, **attributes: Any) -> str:
        pad = size // 2
        groups = attributes.get("group", 1)
        return self.op(
            "Conv", x, self.weight(out, inner // groups, size, size), self.weight(out), pads=[pad] * 4, **attributes
        )

    def norm(self, x: str, channels: int = C) -> str:
        return self.op(
            "BatchNormalization", x, self.weight(channels), self.weight(channels), self.weight(channels),
            self.weight(channels, positive=True),
        )  # fmt: skip

    def excite(self, pooled: str, channels: int = C, end: str = "Sigmoid") -> str:
        """Two 1x1 convolutions with an activation between and a squashing one behind."""
        inner = self.op("Relu", self.conv(pooled, 3, channels))
        return self.op(end, self.conv(inner, channels, 3))

    def se(self, x: str, channels: int = C) -> str:
        return self.op("Mul", x, self.excite(self.op("GlobalAveragePool", x), channels))

    def model(
        self,
        *outputs: str,
        shape: tuple[Any, ...] = ("N", 3, "H", "W"),
        ir_version: int = 9,
        inputs: dict[str, tuple[Any, ...]] | None = None,
    ) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        given = [helper.make_tensor_value_info(name, kind, s) for name, s in (inputs or {"x": shape}).items()]
        if ir_version < 4:
            given += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in self.weights]
        made = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", given, made, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version)
        helper.set_model_props(model, {"author": "somebody", "stride": "8"})
        for output, known in zip(graph.output, onnx.shape_inference.infer_shapes(model).graph.output, strict=True):
            place = next(each for each in model.graph.output if each.name == output.name)
            place.CopyFrom(known)
        return model


def se_net(**options: Any) -> onnx.ModelProto:
    """Conv, BatchNormalization, SE, Conv: the constant goes back."""
    graph = Graph(**options)
    x = graph.se(graph.norm(graph.conv("x", C, 3, 3)))
    return graph.model(graph.conv(x, 4))


def classifier(gates: int = 2) -> onnx.ModelProto:
    """A few blocks with SE, and scores (N, 4)."""
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    for _ in range(gates):
        x = graph.se(graph.op("Relu", graph.conv(x, size=3)))
    x = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    return graph.model(graph.op("Gemm", x, graph.weight(4, C), graph.weight(4), transB=1))


def data(batches: int = 3, size: int = 2, shape: tuple[int, ...] = (3, 8, 10), dtype: Any = np.float32) -> list[Any]:
    """Images of quite different brightness, so that gates move."""
    rng = np.random.default_rng(1)
    made = [
        rng.standard_normal((size, *shape)) * rng.uniform(0.2, 3, (size, *(1,) * len(shape))) for _ in range(batches)
    ]
    return [each.astype(dtype) for each in made]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _global_pool(g: Graph, x: str) -> str:
    return g.excite(g.op("GlobalAveragePool", x))


def _reduce_mean(g: Graph, x: str) -> str:
    return g.excite(g.mean(x, 2, 3), end="HardSigmoid")


def _negative_axes(g: Graph, x: str) -> str:
    return g.excite(g.mean(x, -1, -2))


def _full_kernel(g: Graph, x: str) -> str:
    return g.excite(g.op("AveragePool", x, kernel_shape=[8, 10]))


def _two_pools(g: Graph, x: str) -> str:
    """The channel part of CBAM."""
    pooled = [g.op("GlobalAveragePool", x), g.op("GlobalMaxPool", x)]
    return g.op("Sigmoid", g.op("Add", *(g.conv(each) for each in pooled)))


def _linear(g: Graph, x: str) -> str:
    flat = g.op("Flatten", g.op("GlobalAveragePool", x))
    inner = g.op("Relu", g.op("Gemm", flat, g.weight(C, 3), g.weight(3)))
    end = g.op("Sigmoid", g.op("Gemm", inner, g.weight(3, C), g.weight(C)))
    return g.op("Reshape", end, g.const(np.asarray([0, C, 1, 1], np.int64)))


def _eca(g: Graph, x: str) -> str:
    rows = g.op("Reshape", g.op("GlobalAveragePool", x), g.const(np.asarray([0, 1, C], np.int64)))
    mixed = g.op("Conv", rows, g.weight(1, 1, 3), pads=[1, 1])
    return g.op("Reshape", g.op("Sigmoid", mixed), g.const(np.asarray([0, C, 1, 1], np.int64)))


def _expanded(g: Graph, x: str) -> str:
    """The factor is widened to the map before it is multiplied on."""
    return g.op("Expand", g.excite(g.op("GlobalAveragePool", x)), g.op("Shape", x))


def _by_hand(g: Graph, x: str) -> str:
    """A hard sigmoid in pieces, and a pool as a sum over a number."""
    axes = {"axes": [2, 3]} if g.opset < 13 else {}
    given = (x,) if axes else (x, g.axes(2, 3))
    pooled = g.op("Div", g.op("ReduceSum", *given, keepdims=1, **axes), g.const(np.asarray(80, g.dtype)))
    three, six = g.const(np.asarray(3, g.dtype)), g.const(np.asarray(6, g.dtype))
    low = g.const(np.asarray(0, g.dtype))
    return g.op("Div", g.op("Clip", g.op("Add", g.conv(pooled), three), low, six), six)


def _standard_deviation(g: Graph, x: str) -> str:
    """SRM: the descriptor is a spread, which is no normalisation of the map."""
    mean = g.mean(x, 2, 3)
    centred = g.op("Sub", x, mean)
    return g.op("Sigmoid", g.conv(g.op("Sqrt", g.mean(g.op("Mul", centred, centred), 2, 3))))


FORMS: dict[str, Callable[[Graph, str], str]] = {
    "global pool": _global_pool,
    "reduce mean": _reduce_mean,
    "negative axes": _negative_axes,
    "full kernel": _full_kernel,
    "two pools": _two_pools,
    "linear layers": _linear,
    "over channels": _eca,
    "expanded": _expanded,
    "by hand": _by_hand,
    "standard deviation": _standard_deviation,
}
"""Name -> factor (N, C, 1, 1) of a map (N, C, H, W)."""


def gated(form: str, **options: Any) -> onnx.ModelProto:
    """Conv, a gate of this form, Conv."""
    graph = Graph(**options)
    x = graph.conv("x", C, 3, 3)
    return graph.model(graph.conv(graph.op("Mul", x, FORMS[form](graph, x)), 4, size=3))
