"""Where constants go: into layers, both ways, or into one product; compared with the network that holds them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stripefold import onnx as so
from stripefold.graph.graph import Node
from stripefold.graph.operation_table import OPERATIONS, Passes
from stripefold.onnx import scale_moves
from stripefold.onnx.operator_names import REDUCTIONS, RESHAPES
from tests.onnx.exact import assert_bakes_exactly, run
from tests.onnx.nets import C, Graph, classifier, data, kinds, se_net

Build = Callable[[Graph], tuple[str, ...]]


def product_of(model: onnx.ModelProto) -> tuple[onnx.NodeProto, int]:
    """The one gate's multiplication, and which operand the factor is."""
    made = {node.output[0]: node.op_type for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Mul" and all(name in made or name == "x" for name in node.input):
            for index in (1, 0):
                if made.get(node.input[index]) in ("Sigmoid", "Tanh", "Transpose"):
                    return node, index
    raise AssertionError("the network has no gate")


def baked(build: Build, **options: object) -> tuple[onnx.ModelProto, so.OnnxBakeReport]:
    graph = Graph(**options)  # type: ignore[arg-type]
    model = graph.model(*build(graph))
    return assert_bakes_exactly(model, data(dtype=graph.dtype), *product_of(model))


# Backward: what stands between the layer and the gate.


def _bias(g: Graph, x: str) -> str:
    return g.op("Add", x, g.weight(1, C, 1, 1))


def _scalar_bias(g: Graph, x: str) -> str:
    return g.op("Add", g.weight(1), x)


def _subtracted(g: Graph, x: str) -> str:
    return g.op("Sub", g.weight(C, 1, 1), x)


def _relu(g: Graph, x: str) -> str:
    return g.op("Relu", x)


def _prelu(g: Graph, x: str) -> str:
    return g.op("PRelu", x, g.weight(C, 1, 1))


def _leaky(g: Graph, x: str) -> str:
    return g.op("LeakyRelu", x, alpha=0.2)


def _clip(g: Graph, x: str) -> str:
    return g.op("Clip", x, g.const(np.float32(0)))


def _pool(g: Graph, x: str) -> str:
    return g.op("MaxPool", x, kernel_shape=[2, 2])


def _average(g: Graph, x: str) -> str:
    return g.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def _resize(g: Graph, x: str) -> str:
    scales = g.const(np.asarray([1, 1, 2, 2], np.float32))
    return g.op("Resize", x, "", scales, mode="linear")


def _pad(g: Graph, x: str) -> str:
    return g.op("Pad", x, g.const(np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))


def _scaled(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.weight(C, 1, 1))


def _divided(g: Graph, x: str) -> str:
    return g.op("Div", x, g.weight(1, positive=True))


def _named(g: Graph, x: str) -> str:
    return g.op("Identity", g.op("Neg", x))


def _nothing(g: Graph, x: str) -> str:
    return x


BETWEEN = [
    _nothing, _bias, _scalar_bias, _subtracted, _relu, _prelu, _leaky, _clip, _pool, _average, _resize, _pad, _scaled,
    _divided, _named,
]  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN)
def test_backward_into_a_convolution(between: Callable[[Graph, str], str]) -> None:
    def build(g: Graph) -> tuple[str, ...]:
        x = between(g, g.conv("x", C, 3, 3))
        return (g.op("Sigmoid", g.se(x)),)  # ahead is nothing that takes a constant

    made, report = baked(build)
    assert report.sites[0].outcome == "folded"
    assert report.sites[0].place.startswith("Conv")
    assert "GlobalAveragePool" not in kinds(made)
    assert kinds(made).count("Mul") == (between is _scaled)


def _conv(g: Graph) -> str:
    return g.conv("x", C, 3, 3)


def _depthwise(g: Graph) -> str:
    return g.conv(g.op("Relu", g.conv("x", C, 3)), size=3, group=C)


def _no_bias(g: Graph) -> str:
    return g.op("Conv", "x", g.weight(C, 3, 1, 1))


def _transposed(g: Graph) -> str:
    return g.op("ConvTranspose", g.conv("x", 4, 3), g.weight(4, C, 2, 2), g.weight(C), strides=[2, 2])


def _transposed_groups(g: Graph) -> str:
    return g.op("ConvTranspose", g.conv("x", 4, 3), g.weight(4, C // 2, 2, 2), g.weight(C), strides=[2, 2], group=2)


def _batch_norm(g: Graph) -> str:
    return g.norm(g.conv("x", C, 3))


def _instance_norm(g: Graph) -> str:
    return g.op("InstanceNormalization", g.conv("x", C, 3), g.weight(C), g.weight(C))


def _sum(g: Graph) -> str:
    return g.op("Add", g.conv("x", C, 3), g.conv("x", C, 3, 3))


def _concat(g: Graph) -> str:
    return g.op("Concat", g.conv("x", 2, 3), g.op("Relu", g.conv("x", C - 2, 3)), axis=1)


MAKERS = [_conv, _depthwise, _no_bias, _transposed, _transposed_groups, _batch_norm, _instance_norm, _sum, _concat]


@pytest.mark.parametrize("maker", MAKERS)
def test_backward_into_every_layer(maker: Callable[[Graph], str]) -> None:
    def build(g: Graph) -> tuple[str, ...]:
        x = maker(g)  # the largest value: after an instance norm the mean says nothing
        return (g.op("Sigmoid", g.op("Mul", x, g.excite(g.op("GlobalMaxPool", x)))),)

    _, report = baked(build)
    assert report.sites[0].outcome == "folded"
    assert report.sites[0].why.startswith("back")


# Forward: the map is used elsewhere, or an activation that does not commute stands in front.


def _into_groups(g: Graph, x: str) -> str:
    return g.op("Conv", x, g.weight(4, C // 2, 3, 3), pads=[1] * 4, group=2)


def _into_depthwise(g: Graph, x: str) -> str:
    return g.conv(x, size=3, group=C)


def _into_transposed(g: Graph, x: str) -> str:
    return g.op("ConvTranspose", x, g.weight(C, 4, 2, 2))


def _into_batch_norm(g: Graph, x: str) -> str:
    return g.norm(x)


def _into_two(g: Graph, x: str) -> str:
    return g.op("Add", g.conv(x, size=3), g.conv(g.op("Relu", x)))


def _through_pool(g: Graph, x: str) -> str:
    return g.conv(g.op("Identity", g.op("AveragePool", g.op("Relu", x), kernel_shape=[2, 2])))


def _through_concat(g: Graph, x: str) -> str:
    return g.conv(g.op("Concat", g.conv("x", 2, 3), x, axis=1), 4, C + 2)


def _through_transpose(g: Graph, x: str) -> str:
    return g.op("MatMul", g.op("Transpose", x, perm=[0, 2, 3, 1]), g.weight(C, 4))


def _through_product(g: Graph, x: str) -> str:
    return g.conv(g.op("Mul", g.op("Div", x, g.const(np.float32(3))), g.op("Exp", g.conv("x", C, 3))))


def _squared(g: Graph, x: str) -> str:
    """Both factors are scaled, so the constant counts twice."""
    return g.conv(g.op("Mul", x, g.op("Relu", x)))


TAKERS = [
    _into_groups, _into_depthwise, _into_transposed, _into_batch_norm, _into_two, _through_pool, _through_concat,
    _through_transpose, _through_product, _squared,
]  # fmt: skip


@pytest.mark.parametrize("taker", TAKERS)
def test_forward_into_every_layer(taker: Callable[[Graph, str], str]) -> None:
    made, report = baked(lambda g: (taker(g, g.se(g.op("Sigmoid", g.conv("x", C, 3, 3)))),))
    assert report.sites[0].outcome == "folded", report.sites[0].why
    assert report.sites[0].why.startswith("forward")
    assert kinds(made).count("GlobalAveragePool") == 0


def test_into_gemm_and_through_it() -> None:
    for transposed in (0, 1):
        graph = Graph()
        x = graph.op("MatMul", "x", graph.weight(5, C))
        factor = graph.op("Sigmoid", graph.op("MatMul", graph.mean(x, 1), graph.weight(C, C)))
        flat = graph.op("ReduceMax", graph.op("Mul", graph.op("Exp", x), factor), axes=[1], keepdims=0)
        shape = (4, C) if transposed else (C, 4)
        model = graph.model(
            graph.op("Gemm", flat, graph.weight(*shape), graph.weight(4), transB=transposed), shape=("N", 7, 5)
        )
        _, report = assert_bakes_exactly(model, data(shape=(7, 5)), *product_of(model))
        assert report.sites[0].outcome == "multiply"  # a reduction that drops its axis moves the channels
        assert "changes the channel axis" in report.sites[0].why or "does not commute" in report.sites[0].why


def test_gemm_behind_and_in_front() -> None:
    """Rows of maps as samples: a gate of (1, C) over all rows is one of the second axis of two."""
    graph = Graph()
    x = graph.op("Gemm", "x", graph.weight(5, C), graph.weight(C))
    rows = graph.op("Reshape", x, graph.const(np.asarray([1, -1, C], np.int64)))
    factor = graph.op("Sigmoid", graph.op("MatMul", graph.mean(rows, 1), graph.weight(C, C)))
    model = graph.model(graph.op("MatMul", graph.op("Mul", rows, factor), graph.weight(C, 4)), shape=(12, 5))
    made, report = assert_bakes_exactly(model, data(shape=(5,), size=12), *product_of(model))
    assert report.sites[0].outcome == "folded"
    assert "Mul" not in kinds(made)


# Sums, signs, sharing, and what stays.


def test_residual_gates() -> None:
    """X + x v is x (1 + v), on either side of the sum; x - x v and x v - x likewise."""
    for kind, first in (("Add", True), ("Add", False), ("Sub", True), ("Sub", False)):

        def build(g: Graph, kind: str = kind, first: bool = first) -> tuple[str, ...]:
            x = g.conv("x", C, 3, 3)
            gated = g.se(x)
            return (g.op("Sigmoid", g.op(kind, x, gated) if first else g.op(kind, gated, x)),)

        made, report = baked(build)
        assert report.sites[0].outcome == "folded"
        assert kinds(made) == ["Conv", "Sigmoid"]


def test_a_residual_gate_that_stays_a_product_keeps_its_sum() -> None:
    made, report = baked(lambda g: (g.op("Add", "x", g.op("Mul", "x", _tanh(g, "x"))),), dtype=np.float32)
    assert report.sites[0].outcome == "multiply"
    assert "the map is an input of the network" in report.sites[0].why
    assert "the scaled map is an output of the network" in report.sites[0].why
    assert kinds(made) == ["Mul"]


def _tanh(g: Graph, x: str, channels: int = 3) -> str:
    return g.op("Tanh", g.conv(g.op("GlobalAveragePool", x), channels, channels))


def test_negative_constants_do_not_pass_an_activation() -> None:
    def build(g: Graph) -> tuple[str, ...]:
        x = g.op("Relu", g.conv("x", C, 3, 3))
        return (g.op("Sigmoid", g.op("Mul", x, _tanh(g, x, C))),)

    made, report = baked(build)
    assert report.sites[0].outcome == "multiply"
    assert "does not commute with a negative constant" in report.sites[0].why
    assert kinds(made) == ["Conv", "Relu", "Mul", "Sigmoid"]


def test_a_map_that_is_used_twice_does_not_go_back() -> None:
    made, report = baked(lambda g: ((x := g.conv("x", C, 3, 3)), g.op("Sigmoid", g.se(x))))
    assert report.sites[0].outcome == "multiply"
    assert "is used elsewhere too" in report.sites[0].why
    assert kinds(made) == ["Conv", "Mul", "Sigmoid"]


def test_a_constant_joins_another_where_no_layer_takes_it() -> None:
    for kind in ("Mul", "Div"):

        def build(g: Graph, kind: str = kind) -> tuple[str, ...]:
            x = g.op(kind, g.op("Sigmoid", g.conv("x", C, 3, 3)), g.const(np.float32(1.5)))
            return (g.op("Sigmoid", g.se(x)),)

        made, report = baked(build)
        assert report.sites[0].outcome == "folded"
        assert report.sites[0].place.startswith(kind)
        assert kinds(made) == ["Conv", "Sigmoid", kind, "Sigmoid"]


def test_a_weight_that_others_use_is_copied() -> None:
    graph = Graph()
    shared = graph.weight(C, C, 3, 3)
    x = graph.se(graph.op("Conv", graph.conv("x", C, 3), shared, pads=[1] * 4))
    model = graph.model(graph.op("Sigmoid", graph.op("Conv", graph.op("Sigmoid", x), shared, pads=[1] * 4)))
    made, report = assert_bakes_exactly(model, data(), *product_of(model))
    assert report.sites[0].outcome == "folded"
    assert any("was copied" in note for note in report.notes)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(kept[shared], before[shared])


def test_users_of_one_weight_that_change_alike_share_it_on() -> None:
    """Two branches with the same convolution and the same gate: nothing grows."""
    graph = Graph()
    shared, bias = graph.weight(C, 3, 3, 3), graph.weight(C)
    first, second = (graph.op("Conv", "x", shared, bias, pads=[1] * 4) for _ in range(2))
    factor = graph.excite(graph.op("GlobalAveragePool", graph.conv("x", C, 3)))
    outputs = [graph.op("Sigmoid", graph.op("Mul", x, factor)) for x in (first, second)]
    model = graph.model(graph.op("Add", *outputs))
    made, report = so.bake(model, data(), threads=1)
    assert [site.outcome for site in report.sites] == ["folded", "folded"]
    assert len(made.graph.initializer) == 2
    assert report.bytes_after < report.bytes_before


def test_a_weight_that_the_constant_does_not_change_is_no_copy() -> None:
    graph = Graph()
    zeros = graph.const(np.zeros((C, C, 1, 1), np.float32))
    x = graph.op("Conv", graph.se(graph.op("Sigmoid", graph.conv("x", C, 3))), zeros)
    model = graph.model(graph.op("Add", x, graph.op("Conv", graph.conv("x", C, 3), zeros)))
    made, report = so.bake(model, data(), threads=1)
    assert report.sites[0].outcome == "folded"
    assert report.notes == ()
    assert zeros in {tensor.name for tensor in made.graph.initializer}


def _reshaped(g: Graph, x: str) -> str:
    """The map as exporters flatten it: (N, C, H * W)."""
    flat = g.op("Reshape", x, g.const(np.asarray([0, C, -1], np.int64)))
    factor = g.op(
        "Sigmoid", g.op("Reshape", g.conv(g.op("GlobalAveragePool", x)), g.const(np.asarray([0, C, 1], np.int64)))
    )
    return g.op("Reshape", g.op("Mul", flat, factor), g.op("Shape", x))


def test_through_a_reshape() -> None:
    made, report = baked(lambda g: (g.op("Sigmoid", _reshaped(g, g.conv("x", C, 3, 3))),))
    assert report.sites[0].outcome == "folded"
    assert report.sites[0].why.startswith("back")
    made, report = baked(lambda g: (g.conv(_reshaped(g, g.op("Sigmoid", g.conv("x", C, 3, 3)))),))
    assert report.sites[0].why.startswith("forward")
    assert "Mul" not in kinds(made)


def test_not_through_a_reshape_that_holds_for_one_size_only() -> None:
    """80 positions in a row: with twice as many the rows would be halves of channels."""
    graph = Graph()
    x = graph.op("Sigmoid", graph.se(graph.op("Sigmoid", graph.conv("x", C, 3, 3))))
    gated = graph.se(graph.op("Sigmoid", graph.conv(x)))
    rows = graph.op("Reshape", gated, graph.const(np.asarray([0, -1, 80], np.int64)))
    model = graph.model(graph.op("Conv", graph.op("Reshape", rows, graph.op("Shape", gated)), graph.weight(4, C, 1, 1)))
    _, report = so.bake(model, data(), threads=1)
    assert [site.outcome for site in report.sites] == ["multiply", "multiply"]
    assert "depends on the size of the input" in report.sites[1].why


def test_a_weight_that_the_caller_may_give_is_not_folded_into() -> None:
    graph = Graph()
    weight = graph.weight(C, 3, 3, 3)
    x = graph.op("Conv", "x", weight, pads=[1] * 4)
    model = graph.model(graph.op("Sigmoid", graph.se(x)))
    tensor = next(each for each in model.graph.initializer if each.name == weight)
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight, tensor.data_type, tensor.dims))
    made, report = assert_bakes_exactly(model, data(), *product_of(model))
    assert report.sites[0].outcome == "multiply"
    assert "given by the caller" in report.sites[0].why
    assert [each.name for each in made.graph.input] == ["x", weight]


@pytest.mark.parametrize("constants", [True, False])
@pytest.mark.parametrize(("ir_version", "opset"), [(3, 8), (3, 11), (4, 12), (9, 17)])
def test_old_and_new_files(ir_version: int, opset: int, constants: bool) -> None:
    graph = Graph(opset=opset, constants=constants)
    x = graph.se(graph.norm(graph.conv("x", C, 3, 3)))
    model = graph.model(graph.conv(x, 4), ir_version=ir_version)
    made, report = assert_bakes_exactly(model, data(), *product_of(model))
    assert report.sites[0].outcome == "folded"
    assert made.ir_version == ir_version
    assert [each.version for each in made.opset_import] == [opset]
    unused = {each.name for each in made.graph.input} - {name for node in made.graph.node for name in node.input}
    assert not unused
    assert set(kinds(made)) - {"Constant"} == {"Conv", "BatchNormalization"}


def test_half_precision_and_what_it_cannot_hold() -> None:
    graph = Graph(dtype=np.float16)
    model = graph.model(graph.conv(graph.se(graph.conv("x", C, 3, 3)), 4))
    product, index = product_of(model)
    made, report = assert_bakes_exactly(model, data(dtype=np.float16), product, index, tolerance=4e-3)
    assert report.sites[0].outcome == "folded"
    assert {tensor.data_type for tensor in made.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_a_weight_that_its_type_cannot_hold_is_left_alone() -> None:
    """Weights near the end of the range of float16, times 1 + v: the product stays beside the layer."""
    graph = Graph(dtype=np.float16)
    weight = graph.const(np.full((C, 3, 1, 1), 4e4, np.float16))
    x = graph.op("Relu", graph.op("Conv", "x", weight))  # the runtime would merge a product right behind into it
    gate = graph.excite(graph.op("GlobalAveragePool", graph.op("Mul", x, graph.const(np.float16(1e-2)))))
    gated = graph.op("Mul", graph.op("Add", x, graph.op("Mul", x, gate)), graph.const(np.float16(1e-2)))
    model = graph.model(graph.op("Sigmoid", gated))
    dim = [(np.abs(each) * 1e-4).astype(np.float16) for each in data()]
    made, report = so.bake(model, dim, threads=1)
    assert report.sites[0].outcome == "multiply"
    assert "float16 cannot hold the weights" in report.sites[0].why
    assert kinds(made) == ["Conv", "Relu", "Mul", "Mul", "Sigmoid"]


@pytest.mark.parametrize(("dtype", "outcome"), [(np.float16, "multiply"), (np.float32, "folded")])
def test_a_weight_that_would_be_lost_to_its_type_is_left_alone(dtype: type, outcome: str) -> None:
    """Small weights times a small gate: the map that is multiplied holds the product, the weights do not."""
    graph = Graph(dtype=dtype)

    def const(values: object) -> str:
        return graph.const(np.asarray(values, dtype))

    small = const(np.arange(1, 3 * C + 1).reshape(C, 3, 1, 1) * 1e-4)
    x = graph.op("Relu", graph.op("Conv", "x", small))
    factor = graph.excite(graph.op("GlobalAveragePool", x))
    gate = graph.op("Sigmoid", graph.op("Add", factor, const(np.full((1, 1, 1, 1), -8))))
    gated = graph.op("Mul", graph.op("Mul", x, gate), const(np.full((1, 1, 1, 1), 1e3)))
    batches = [(np.abs(each) * 10).astype(dtype) for each in data()]
    _, report = so.bake(graph.model(graph.op("Sigmoid", gated)), batches, threads=1)
    (site,) = report.sites
    assert site.outcome == outcome
    assert outcome == "folded" or "float16 cannot hold the weights of 'Conv.2' times the constant: they are" in site.why


def test_a_gate_whose_value_is_needed_elsewhere_is_still_computed() -> None:
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    factor = graph.excite(graph.op("GlobalAveragePool", x))
    model = graph.model(graph.conv(graph.op("Mul", x, factor)), factor)
    made, report = so.bake(model, data(), threads=1)
    assert report.sites[0].outcome == "constant"
    assert report.baked == ()
    assert "an output of the network" in report.sites[0].why
    assert "constant, still computed" in str(report)
    np.testing.assert_array_equal(run(made, data()[0])[1], run(model, data()[0])[1])


def test_one_gate_of_two_that_share_their_factor() -> None:
    graph = Graph()
    first, second = graph.conv("x", C, 3, 3), graph.conv("x", C, 3)
    factor = graph.excite(graph.op("GlobalAveragePool", first))
    model = graph.model(graph.conv(graph.op("Mul", first, factor)), graph.conv(graph.op("Mul", second, factor)))
    names = [layer.name for layer in so.observe(model, data()).layers]
    assert len(names) == 2
    _, report = so.bake(model, data(), where=names[0], threads=1)
    assert [site.outcome for site in report.sites] == ["constant", "dynamic"]
    _, report = so.bake(model, data(), threads=1)
    assert [site.outcome for site in report.sites] == ["folded", "folded"]


def test_gates_one_behind_the_other() -> None:
    model = classifier(3)
    made, report = so.bake(model, data(), threads=1)
    assert [site.outcome for site in report.sites] == ["folded"] * 3
    assert report.error <= 1e-5
    assert set(kinds(made)) == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}


def test_interface_and_metadata_stay() -> None:
    model = se_net()
    made, _ = so.bake(model, data(), threads=1)
    assert made.graph.input == model.graph.input
    assert made.graph.output == model.graph.output
    assert made.metadata_props == model.metadata_props
    assert made.opset_import == model.opset_import
    assert made.producer_name == model.producer_name
    # The given model is as it was.
    assert model.SerializeToString() == se_net().SerializeToString()


def test_a_gate_within_the_attention_of_another() -> None:
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    inner = graph.se(graph.conv(x))
    outer = graph.op("Mul", x, graph.excite(graph.op("GlobalMaxPool", inner)))
    model = graph.model(graph.conv(outer))
    made, report = so.bake(model, data(), threads=1)
    assert [site.outcome for site in report.sites] == ["folded", "folded"]
    assert "nothing needs what it scales" in report.sites[0].why
    assert kinds(made) == ["Conv", "Conv"]


def test_operations_that_nothing_uses() -> None:
    graph = Graph()
    x = graph.conv("x", C, 3, 3)
    graph.se(x)
    model = graph.model(graph.conv(graph.se(x)))
    _, report = so.bake(model, data(), threads=1)
    assert len(report.sites) == 1


def test_identities_stand_in_nobodys_way() -> None:
    """Some exporters put one behind every operation, and around every weight."""
    graph = Graph()
    weight, bias = graph.op("Identity", graph.weight(C, 3, 3, 3)), graph.op("Identity", graph.weight(C))
    x = graph.op("Identity", graph.op("Conv", "x", weight, bias, pads=[1] * 4))
    factor = graph.op("Identity", graph.excite(graph.op("Identity", graph.op("GlobalAveragePool", x))))
    gated = graph.op("Identity", graph.op("Mul", graph.op("Identity", x), factor))
    model = graph.model(graph.op("Identity", graph.op("Sigmoid", graph.op("Add", x, gated))))
    made, report = so.bake(model, data(), threads=1)
    assert report.sites[0].outcome == "folded"
    assert kinds(made) == ["Conv", "Sigmoid", "Identity"]
    # What is still computed is found behind them, too.
    model = graph.model(graph.op("Sigmoid", gated), factor)
    made, report = so.bake(model, data(), threads=1)
    assert report.sites[0].outcome == "constant"


# What both tables name, this package's and that of graph/operation_table.py, which moves patterns of torch's
# tensors; this package must do without torch.
SAME = {
    "Identity": "clone", "Neg": "neg", "Dropout": "dropout", "AveragePool": "avg_pool2d",
    "GlobalAveragePool": "adaptive_avg_pool2d", "Relu": "relu", "LeakyRelu": "leaky_relu", "PRelu": "prelu",
    "MaxPool": "max_pool2d", "GlobalMaxPool": "adaptive_max_pool2d", "Abs": "abs", "Reshape": "reshape",
    "Flatten": "flatten", "Squeeze": "squeeze", "Unsqueeze": "unsqueeze", "ReduceMean": "mean", "ReduceSum": "sum",
    "ReduceMax": "amax", "ReduceMin": "amin",
}  # fmt: skip


def test_the_table_of_operations_says_the_same() -> None:
    listed = scale_moves._LINEAR | scale_moves._POSITIVE | RESHAPES | REDUCTIONS
    assert listed == SAME.keys()
    for kind, name in SAME.items():
        says = OPERATIONS[name].scale(Node(kind="operation", name=name))
        assert says == Passes(nonnegative=kind in scale_moves._POSITIVE | {"ReduceMax", "ReduceMin"}), kind
